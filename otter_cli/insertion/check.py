"""Can this base run? The one check of `graft`, its dry run, `doctor`, `attach`, `compose` and every
load of a base.

`contradictions` needs config.json and the headers alone: what a table of the family's tensors, of
packages and of ids can say. Where that does not settle it (tensors that are not in the table, a
configuration that is not plain, a family that is not listed whole) `check_base` has transformers
rehearse the load. What transformers loads and this package cannot run belongs here too: in
`cannot_run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from otter_cli.checkpoint.dtypes import FLOATS
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.families.ids import id_fault, id_warnings
from otter_cli.families.plain import is_plain_config, is_plain_generation
from otter_cli.families.quantised import quantisation_fault
from otter_cli.families.tensors import expected_tensors, is_listed_whole

# What models compute in.
RUNNABLE = ("F64", "F32", "BF16", "F16")
_BLOCK = 16 * 2**20
GENERATION = "generation_config.json"
_TOKENIZER = "tokenizer_config.json"


class Contradiction(NamedTuple):
    """Why the base cannot run: of which tensor (or of none), what, and what to do."""

    tensor: str
    what: str
    hint: str

    @property
    def text(self) -> str:
        return f"tensor {self.tensor} {self.what}" if self.tensor else self.what


def check_base(base: Checkpoint, shape: BaseShape) -> None:
    """Raises OtterError for the first reason why the base cannot load or run."""
    check_files(base, shape)
    for fault in rehearsed(base, shape):
        raise _refusal(base, fault)


def warn_of_ids(base: Checkpoint, shape: BaseShape) -> None:
    """Warns of ids that have no row in the embedding, and of a tokenizer with code of its own: the
    base runs without them."""
    for warning in base_warnings(base, shape):
        warn(f"{base.path}: {warning}")


def base_warnings(base: Checkpoint, shape: BaseShape) -> Iterator[str]:
    """What keeps no base from running, and some texts or verbs from using it."""
    yield from id_warnings(base, shape)
    settings = read_object(base.path / _TOKENIZER) if _TOKENIZER in base.files else {}
    if settings.get("auto_map"):
        yield (
            f"{_TOKENIZER}: auto_map names code that the folder brings; otter runs none of it, and "
            "generate, chat, train and bench refuse a tokenizer that needs it"
        )


def check_files(base: Checkpoint, shape: BaseShape) -> None:
    """The part that needs no torch: for loads, which settle the rest themselves."""
    for fault in contradictions(base, shape):
        raise _refusal(base, fault)


def rehearsed(base: Checkpoint, shape: BaseShape) -> Iterator[Contradiction]:
    """What transformers says against the base, where the files alone do not settle it."""
    if needs_rehearsal(base, shape):
        from otter_cli.insertion.rehearsal import rehearse

        yield from rehearse(base)


def contradictions(base: Checkpoint, shape: BaseShape) -> Iterator[Contradiction]:
    """What config.json and the headers show: a package that is absent, every tensor that is missing
    or of another shape, a head that is tied and yet its own, ids without a row."""
    if quantised := quantisation_fault(base.config):
        yield Contradiction("", *quantised)
        return
    if "adapter_config.json" in base.files:
        what = "adapter_config.json lies beside the weights: transformers would load its base"
        yield Contradiction("", what, "move the adapter to a folder of its own, or merge it")
        return
    if base.dtype not in RUNNABLE:
        what = f"the weights are stored as {base.dtype}"
        yield Contradiction("", what, f"the weights must be one of {', '.join(RUNNABLE)}")
        return
    if shape.layers > len(base.tensors):
        what = f"config.json says {shape.layers} layers, and there are {len(base.tensors)} tensors"
        yield Contradiction("", what, "the configuration belongs to another checkpoint")
        return
    for name, form in expected_tensors(shape):
        stored = stored_name(base, shape, name)
        if stored is None:
            yield Contradiction(name, "is missing", _missing_hint(base, shape))
        elif tuple(base.tensors[stored].shape) != form:
            what = f"is {list(base.tensors[stored].shape)}, config.json says {list(form)}"
            yield Contradiction(stored, what, "the configuration belongs to another checkpoint")
    yield from _head(base, shape)
    if fault := id_fault(base, shape):
        yield Contradiction("", fault, "set it to a token of the vocabulary, or to null")
    yield from cannot_run(base, shape)


def cannot_run(base: Checkpoint, shape: BaseShape) -> Iterator[Contradiction]:
    """The place for bases that transformers loads and this package cannot generate from or train:
    each is refused here by name, so that no verb accepts what another one refuses."""
    yield from ()


def needs_rehearsal(base: Checkpoint, shape: BaseShape) -> bool:
    """Whether transformers has to say if the base loads: the files alone do not settle it. A base
    that is quantised in the file is loaded by its package, which no rehearsal stands for."""
    if base.config.get("quantization_config") is not None:
        return False
    generation = read_object(base.path / GENERATION) if GENERATION in base.files else {}
    return not (
        is_listed_whole(shape.family)
        and is_plain_config(base.config, shape)
        and is_plain_generation(generation, shape)
        and _holds_what_is_listed(base, shape)
    )


def stored_name(base: Checkpoint, shape: BaseShape, name: str) -> str | None:
    """The name under which the base stores a tensor: some files leave the first part out."""
    return next((n for n in shape.family.on_disk(name) if n in base.tensors), None)


def _holds_what_is_listed(base: Checkpoint, shape: BaseShape) -> bool:
    """Whether every tensor is one of the table's, and of a type that models are run in."""
    names = {stored_name(base, shape, name) for name, _ in expected_tensors(shape)}
    known = {*names, shape.family.head_weight}
    buffers = shape.family.buffers
    others = [n for n in base.tensors if n not in known and not _is_buffer(n, buffers)]
    return not others and all(base.tensors[n].dtype in FLOATS for n in known if n in base.tensors)


def _is_buffer(name: str, buffers: tuple[str, ...]) -> bool:
    return any(name.endswith(f".{buffer}") for buffer in buffers)


def _missing_hint(base: Checkpoint, shape: BaseShape) -> str:
    if base.config.get("quantization_config") is not None:
        return "the base is quantised in the file: graft onto the unquantised checkpoint"
    return f"config.json says {shape.layers} layers; are all shards there?"


def _refusal(base: Checkpoint, fault: Contradiction) -> OtterError:
    return OtterError(f"{base.path}: {fault.text}", hint=fault.hint)


def _head(base: Checkpoint, shape: BaseShape) -> Iterator[Contradiction]:
    """A loader that ties and one that does not would see two different models."""
    family = shape.family
    head = family.head_weight
    if head not in base.tensors:
        if not shape.tied:
            hint = "tie_word_embeddings must be true where the embedding serves as the head"
            yield Contradiction(head, "is missing, and config.json ties it to nothing", hint)
        return
    form, stored = (shape.vocab, shape.hidden), tuple(base.tensors[head].shape)
    if stored != form:
        what = f"is {list(stored)}, config.json says {list(form)}"
        yield Contradiction(head, what, "the configuration belongs to another checkpoint")
        return
    table = stored_name(base, shape, f"{family.embedding}.weight")
    if shape.tied and table and not _same_bytes(base, head, table):
        what = f"differs from {table}, to which config.json ties it (tie_word_embeddings)"
        hint = "set tie_word_embeddings to false to keep both, or leave this tensor out"
        yield Contradiction(head, what, hint)


def _same_bytes(base: Checkpoint, one: str, other: str) -> bool:
    first, second = base.tensors[one], base.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    import numpy as np

    a, b = (np.frombuffer(base.read_raw(name), np.uint8) for name in (one, other))
    return all(
        np.array_equal(a[i : i + _BLOCK], b[i : i + _BLOCK]) for i in range(0, len(a), _BLOCK)
    )
