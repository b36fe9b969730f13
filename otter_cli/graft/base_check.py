"""Can this base run? The one check for graft, its dry run, doctor, attach, compose and every load.

`find_problems` needs config.json and the headers alone. Where these do not settle the question,
`check_base` loads the base in transformers on the meta device and runs two steps, without reading a
weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from otter_cli.checkpoint.dtypes import FLOAT_DTYPES
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import locate_fault, short_message
from otter_cli.core.strict_files import read_json_object
from otter_cli.families.config_checks import (
    has_known_good_entries,
    is_known_good_config,
    quantisation_error,
)
from otter_cli.families.shape import BaseShape, expected_tensors, has_complete_tensor_list
from otter_cli.families.token_ids import token_id_error, token_id_warnings

# What models compute in.
RUNNABLE_DTYPES = ("F64", "F32", "BF16", "F16")
_COMPARED_BYTES = 16 * 2**20
GENERATION_CONFIG = "generation_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"


class BaseProblem(NamedTuple):
    """Why the base cannot run: of which tensor (or of none), what, and what to do."""

    tensor: str
    what: str
    hint: str

    @property
    def text(self) -> str:
        return f"tensor {self.tensor} {self.what}" if self.tensor else self.what


def check_base(base: Checkpoint, shape: BaseShape) -> None:
    """Raises OtterError for the first reason why the base cannot load or run."""
    check_base_headers(base, shape)
    for fault in rehearsal_problems(base, shape):
        raise _problem_error(base, fault)


def warn_about_base(base: Checkpoint, shape: BaseShape) -> None:
    """Warns of ids that have no row in the embedding, and of a tokenizer with code of its own: the
    base runs without them."""
    for warning in base_warnings(base, shape):
        warn(f"{base.path}: {warning}")


def base_warnings(base: Checkpoint, shape: BaseShape) -> Iterator[str]:
    """What keeps no base from running, and some texts or verbs from using it."""
    yield from token_id_warnings(base, shape)
    settings = (
        read_json_object(base.path / _TOKENIZER_CONFIG) if _TOKENIZER_CONFIG in base.files else {}
    )
    if settings.get("auto_map"):
        yield (
            f"{_TOKENIZER_CONFIG}: auto_map names code that the folder brings; otter runs none "
            f"of it, and "
            "generate, chat, train and bench refuse a tokenizer that needs it"
        )


def check_base_headers(base: Checkpoint, shape: BaseShape) -> None:
    """The part that needs no torch: for loads, which settle the rest themselves."""
    for fault in find_problems(base, shape):
        raise _problem_error(base, fault)


def rehearsal_problems(base: Checkpoint, shape: BaseShape) -> Iterator[BaseProblem]:
    """What transformers says against the base, where the files alone do not settle it."""
    if needs_rehearsal(base, shape):
        yield from rehearse_load(base)


def find_problems(base: Checkpoint, shape: BaseShape) -> Iterator[BaseProblem]:
    """What config.json and the headers show: a package that is absent, every tensor that is missing
    or of another shape, a head that is tied and yet its own, ids without a row."""
    if quantised := quantisation_error(base.config):
        yield BaseProblem("", *quantised)
        return
    if "adapter_config.json" in base.files:
        what = "adapter_config.json lies beside the weights: transformers would load its base"
        yield BaseProblem("", what, "move the adapter to a folder of its own, or merge it")
        return
    if base.dtype not in RUNNABLE_DTYPES:
        what = f"the weights are stored as {base.dtype}"
        yield BaseProblem("", what, f"the weights must be one of {', '.join(RUNNABLE_DTYPES)}")
        return
    if shape.layers > len(base.tensors):
        what = f"config.json says {shape.layers} layers, and there are {len(base.tensors)} tensors"
        yield BaseProblem("", what, "the configuration belongs to another checkpoint")
        return
    for name, form in expected_tensors(shape):
        stored = stored_name(base, shape, name)
        if stored is None:
            yield BaseProblem(name, "is missing", _missing_hint(base, shape))
        elif tuple(base.tensors[stored].shape) != form:
            what = f"is {list(base.tensors[stored].shape)}, config.json says {list(form)}"
            yield BaseProblem(stored, what, "the configuration belongs to another checkpoint")
    yield from _output_head_problems(base, shape)
    if fault := token_id_error(base, shape):
        yield BaseProblem("", fault, "set it to a token of the vocabulary, or to null")
    yield from unsupported_base_problems(base, shape)


def unsupported_base_problems(base: Checkpoint, shape: BaseShape) -> Iterator[BaseProblem]:
    """The place for bases that transformers loads and this package cannot generate from or train:
    each is refused here by name, so that no verb accepts what another one refuses."""
    yield from ()


def needs_rehearsal(base: Checkpoint, shape: BaseShape) -> bool:
    """Whether transformers has to say if the base loads: the files alone do not settle it. A base
    that is quantised in the file is loaded by its package, which no rehearsal stands for."""
    if base.config.get("quantization_config") is not None:
        return False
    generation = (
        read_json_object(base.path / GENERATION_CONFIG) if GENERATION_CONFIG in base.files else {}
    )
    return not (
        has_complete_tensor_list(shape.family)
        and is_known_good_config(base.config, shape)
        and has_known_good_entries(generation, shape)
        and _has_only_expected_tensors(base, shape)
    )


def stored_name(base: Checkpoint, shape: BaseShape, name: str) -> str | None:
    """The name under which the base stores a tensor: some files leave the first part out."""
    return next((n for n in shape.family.stored_names(name) if n in base.tensors), None)


def _has_only_expected_tensors(base: Checkpoint, shape: BaseShape) -> bool:
    """Whether every tensor is one of the table's, and of a type that models are run in."""
    names = {stored_name(base, shape, name) for name, _ in expected_tensors(shape)}
    known = {*names, shape.family.head_weight}
    buffers = shape.family.buffers
    others = [n for n in base.tensors if n not in known and not _is_buffer(n, buffers)]
    return not others and all(
        base.tensors[n].dtype in FLOAT_DTYPES for n in known if n in base.tensors
    )


def _is_buffer(name: str, buffers: tuple[str, ...]) -> bool:
    return any(name.endswith(f".{buffer}") for buffer in buffers)


def _missing_hint(base: Checkpoint, shape: BaseShape) -> str:
    if base.config.get("quantization_config") is not None:
        return "the base is quantised in the file: graft onto the unquantised checkpoint"
    return f"config.json says {shape.layers} layers; are all shards there?"


def _problem_error(base: Checkpoint, fault: BaseProblem) -> OtterError:
    return OtterError(f"{base.path}: {fault.text}", hint=fault.hint)


def _output_head_problems(base: Checkpoint, shape: BaseShape) -> Iterator[BaseProblem]:
    """A loader that ties and one that does not would see two different models."""
    family = shape.family
    head = family.head_weight
    if head not in base.tensors:
        if not shape.tied:
            hint = "tie_word_embeddings must be true where the embedding serves as the head"
            yield BaseProblem(head, "is missing, and config.json ties it to nothing", hint)
        return
    form, stored = (shape.vocab, shape.hidden), tuple(base.tensors[head].shape)
    if stored != form:
        what = f"is {list(stored)}, config.json says {list(form)}"
        yield BaseProblem(head, what, "the configuration belongs to another checkpoint")
        return
    table = stored_name(base, shape, f"{family.embedding}.weight")
    if shape.tied and table and not _same_bytes(base, head, table):
        what = f"differs from {table}, to which config.json ties it (tie_word_embeddings)"
        hint = "set tie_word_embeddings to false to keep both, or leave this tensor out"
        yield BaseProblem(head, what, hint)


def _same_bytes(base: Checkpoint, one: str, other: str) -> bool:
    first, second = base.tensors[one], base.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    import numpy as np

    a, b = (np.frombuffer(base.read_raw(name), np.uint8) for name in (one, other))
    return all(
        np.array_equal(a[i : i + _COMPARED_BYTES], b[i : i + _COMPARED_BYTES])
        for i in range(0, len(a), _COMPARED_BYTES)
    )


# What the meta device itself cannot do says nothing about the base.
_META_DEVICE_ERRORS = ("meta tensor", "data-dependent")

_DAMAGED_VALUE = "the value is damaged or of the wrong type: fetch the file again, or mend it"


def rehearse_load(base: Checkpoint) -> Iterator[BaseProblem]:
    """What transformers says against the base: tensors that it misses, does not expect or cannot
    fit, settings that it refuses, and a forward that fails."""
    with _quiet_transformers():
        file = GENERATION_CONFIG
        try:
            _read_generation(base)
            file = "config.json"
            model, info = _load_on_meta(base)
        except Exception as refusal:  # noqa: BLE001 - of any class: configurations, modules, converters
            yield _transformers_problem(base, refusal, file)
            return
        faults = list(_tensor_problems(base, info))
        yield from faults
        if not faults and (error := _try_forward(model)) is not None:
            yield _transformers_problem(base, error)


def _read_generation(base: Checkpoint) -> None:
    from transformers import GenerationConfig

    if GENERATION_CONFIG in base.files:
        GenerationConfig.from_dict(read_json_object(base.path / GENERATION_CONFIG))


def _load_on_meta(base: Checkpoint) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    state = {
        name: torch.empty(info.shape, dtype=_torch_dtype(info.dtype), device="meta")
        for name, info in base.tensors.items()
    }
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        local_files_only=True,
        trust_remote_code=False,
        # In this type and attention, every module has a form for the meta device.
        dtype=torch.bfloat16,
        attn_implementation="eager",
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return model, info


def _torch_dtype(stored: str) -> Any:
    import torch

    names = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat"}
    kind = stored.rstrip("0123456789")
    if stored == "BOOL":
        return torch.bool
    return getattr(torch, names.get(kind, "") + stored[len(kind) :], torch.uint8)


def _tensor_problems(base: Checkpoint, info: dict[str, Any]) -> Iterator[BaseProblem]:
    for name in sorted(info["missing_keys"]):
        yield BaseProblem(
            name, "is missing", "transformers would fill it at random; are all shards there?"
        )
    for name in sorted(info["unexpected_keys"]):
        yield BaseProblem(
            name,
            "belongs to no module of this base",
            "it is another model's, or another tool's: leave it out of the checkpoint",
        )
    for name, stored, wanted in sorted(info["mismatched_keys"], key=str):
        what = f"is {list(stored)}, config.json says {list(wanted)}"
        yield BaseProblem(name, what, "the configuration belongs to another checkpoint")
    for message in info.get("error_msgs") or ():
        yield _transformers_problem(base, ValueError(message))


def _try_forward(model: Any) -> Exception | None:
    """Three tokens and one more with their cache; what went wrong, None for nothing."""
    import torch

    def ones(count: int) -> Any:
        return torch.ones(1, count, dtype=torch.long, device="meta")

    try:
        with torch.no_grad():
            first = model.eval()(ones(3), attention_mask=ones(3), use_cache=True)
            model(ones(1), attention_mask=ones(4), past_key_values=first.past_key_values)
    except Exception as error:  # noqa: BLE001 - of any class: the base's own code
        undecided = isinstance(error, NotImplementedError) or any(
            part in str(error) for part in _META_DEVICE_ERRORS
        )
        return None if undecided else error
    return None


def _transformers_problem(
    base: Checkpoint, error: Exception, file: str = "config.json"
) -> BaseProblem:
    at = locate_fault(base.path, (file,), error)
    shown = "".join(c if c.isprintable() else "?" for c in short_message(error))
    return BaseProblem("", f"{at}: transformers refuses it: {shown}", _DAMAGED_VALUE)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' own reports and bars: what they say is said in an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
