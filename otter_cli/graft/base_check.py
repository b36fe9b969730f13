"""Can this base run? The one check of graft, doctor, attach, compose and every load.

`find_problems` needs config.json and the tensor headers alone. Where these do not settle the
question, `rehearse_load` loads the base in transformers on the meta device and runs two steps,
without reading a weight. `inspect_base` returns everything that both find, `check_base` raises the
first of it.
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

# The dtypes that models compute in.
_RUNNABLE_DTYPES = ("F64", "F32", "BF16", "F16")
_COMPARED_BYTES = 16 * 2**20
_GENERATION_CONFIG = "generation_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_OTHER_CHECKPOINT = "the configuration belongs to another checkpoint"


class BaseProblem(NamedTuple):
    """Why the base cannot run: the tensor concerned ("" for none), what is wrong, what to do."""

    tensor: str
    what: str
    hint: str


class BaseInspection(NamedTuple):
    """`problems` keep the base from running, `warnings` do not. `shapes` counts the tensors whose
    shapes were compared with config.json, and is 0 where the headers show a problem."""

    problems: list[BaseProblem]
    warnings: list[str]
    shapes: int


def inspect_base(base: Checkpoint, shape: BaseShape) -> BaseInspection:
    """Everything that keeps the base from running, and what is worth a warning."""
    problems, shapes = list(find_problems(base, shape)), 0
    if not problems:
        shapes = sum(1 for _ in expected_tensors(shape))
        if needs_rehearsal(base, shape):
            problems = list(rehearse_load(base))
    return BaseInspection(problems, list(_warnings(base, shape)), shapes)


def check_base(base: Checkpoint, shape: BaseShape) -> None:
    """Raises OtterError for the first reason why the base cannot load or run."""
    check_base_headers(base, shape)
    if needs_rehearsal(base, shape):
        _raise_first(base, rehearse_load(base))


def check_base_headers(base: Checkpoint, shape: BaseShape) -> None:
    """The part of `check_base` that needs no torch. A real load settles the rest by itself."""
    _raise_first(base, find_problems(base, shape))


def warn_about_base(base: Checkpoint, shape: BaseShape) -> None:
    """Warns of token ids without a row in the embedding, and of a tokenizer with code of its
    own."""
    for warning in _warnings(base, shape):
        warn(f"{base.path}: {warning}")


def _raise_first(base: Checkpoint, problems: Iterator[BaseProblem]) -> None:
    for tensor, what, hint in problems:
        where = f"tensor {tensor} " if tensor else ""
        raise OtterError(f"{base.path}: {where}{what}", hint=hint)


def _warnings(base: Checkpoint, shape: BaseShape) -> Iterator[str]:
    yield from token_id_warnings(base, shape)
    if _read_if_present(base, _TOKENIZER_CONFIG).get("auto_map"):
        yield (
            f"{_TOKENIZER_CONFIG}: auto_map names code in the folder. otter does not run it, so "
            "generate, chat, train and bench refuse a tokenizer that needs it"
        )


def _read_if_present(base: Checkpoint, file: str) -> dict[str, Any]:
    return read_json_object(base.path / file) if file in base.files else {}


def find_problems(base: Checkpoint, shape: BaseShape) -> Iterator[BaseProblem]:
    """The problems that config.json and the tensor headers show.

    These are: a package that is not installed, an adapter, a dtype that nothing computes in, every
    tensor that is missing or has another shape, a tied head that differs from the embedding, and
    token ids without a row.
    """
    if quantised := quantisation_error(base.config):
        yield BaseProblem("", *quantised)
        return
    if "adapter_config.json" in base.files:
        what = "adapter_config.json lies beside the weights: transformers would load its base"
        yield BaseProblem("", what, "move the adapter to a folder of its own, or merge it")
        return
    if base.dtype not in _RUNNABLE_DTYPES:
        what = f"the weights are stored as {base.dtype}"
        yield BaseProblem("", what, f"the weights must be one of {', '.join(_RUNNABLE_DTYPES)}")
        return
    if shape.layers > len(base.tensors):
        what = f"config.json says {shape.layers} layers, and there are {len(base.tensors)} tensors"
        yield BaseProblem("", what, _OTHER_CHECKPOINT)
        return
    missing_hint = f"config.json says {shape.layers} layers; are all shards there?"
    if base.config.get("quantization_config") is not None:
        missing_hint = "the base is quantised in the file: graft onto the unquantised checkpoint"
    for name, form in expected_tensors(shape):
        stored = _stored_name(base, shape, name)
        if stored is None:
            yield BaseProblem(name, "is missing", missing_hint)
        else:
            yield from _shape_problems(base, stored, form)
    yield from _output_head_problems(base, shape)
    if fault := token_id_error(base, shape):
        yield BaseProblem("", fault, "set it to a token of the vocabulary, or to null")


def needs_rehearsal(base: Checkpoint, shape: BaseShape) -> bool:
    """Whether transformers has to say if the base loads, because the files do not settle it.

    A quantised base is loaded by its own package, which cannot be rehearsed.
    """
    if base.config.get("quantization_config") is not None:
        return False
    return not (
        has_complete_tensor_list(shape.family)
        and is_known_good_config(base.config, shape)
        and has_known_good_entries(_read_if_present(base, _GENERATION_CONFIG), shape)
        and _has_only_expected_tensors(base, shape)
    )


def _stored_name(base: Checkpoint, shape: BaseShape, name: str) -> str | None:
    """The name under which the base stores a tensor. Some files leave the first part out."""
    return next((n for n in shape.family.stored_names(name) if n in base.tensors), None)


def _has_only_expected_tensors(base: Checkpoint, shape: BaseShape) -> bool:
    """Whether the family's list has every tensor of the base, and all are of a float dtype."""
    expected = {_stored_name(base, shape, name) for name, _ in expected_tensors(shape)}
    expected.add(shape.family.head_weight)
    buffers = tuple(f".{buffer}" for buffer in shape.family.buffers)
    return all(
        info.dtype in FLOAT_DTYPES if name in expected else name.endswith(buffers)
        for name, info in base.tensors.items()
    )


def _shape_problems(base: Checkpoint, name: str, form: tuple[int, ...]) -> Iterator[BaseProblem]:
    stored = tuple(base.tensors[name].shape)
    if stored != form:
        what = f"is {list(stored)}, config.json says {list(form)}"
        yield BaseProblem(name, what, _OTHER_CHECKPOINT)


def _output_head_problems(base: Checkpoint, shape: BaseShape) -> Iterator[BaseProblem]:
    """Where a loader that ties the head and one that does not would load different models."""
    family = shape.family
    head = family.head_weight
    if head not in base.tensors:
        if not shape.tied:
            hint = "tie_word_embeddings must be true where the embedding serves as the head"
            yield BaseProblem(head, "is missing, and config.json ties it to nothing", hint)
        return
    if wrong := list(_shape_problems(base, head, (shape.vocab, shape.hidden))):
        yield from wrong
        return
    table = _stored_name(base, shape, f"{family.embedding}.weight")
    if shape.tied and table and not _same_bytes(base, head, table):
        what = f"differs from {table}, to which config.json ties it (tie_word_embeddings)"
        hint = "set tie_word_embeddings to false to keep both, or leave this tensor out"
        yield BaseProblem(head, what, hint)


def _same_bytes(base: Checkpoint, first: str, second: str) -> bool:
    infos = base.tensors[first], base.tensors[second]
    if (infos[0].dtype, infos[0].shape) != (infos[1].dtype, infos[1].shape):
        return False
    import numpy as np

    a, b = (np.frombuffer(base.read_raw(name), np.uint8) for name in (first, second))
    return all(
        np.array_equal(a[i : i + _COMPARED_BYTES], b[i : i + _COMPARED_BYTES])
        for i in range(0, len(a), _COMPARED_BYTES)
    )


# Errors that the meta device itself raises. They say nothing about the base.
_META_DEVICE_ERRORS = ("meta tensor", "data-dependent")

_DAMAGED_VALUE = "the value is damaged or of the wrong type: fetch the file again, or correct it"


def rehearse_load(base: Checkpoint) -> Iterator[BaseProblem]:
    """What transformers objects to: settings that it refuses, tensors that are missing, unexpected
    or of another shape, and a forward that fails."""
    from transformers import GenerationConfig

    with _quiet_transformers():
        file = _GENERATION_CONFIG
        try:
            if generation := _read_if_present(base, file):
                GenerationConfig.from_dict(generation)
            file = "config.json"
            model, info = _load_on_meta(base)
        # Configurations, modules and converters raise errors of any class.
        except Exception as error:  # noqa: BLE001
            yield _transformers_problem(base, error, file)
            return
        problems = list(_tensor_problems(base, info))
        yield from problems
        if not problems and (failure := _try_forward(model)) is not None:
            yield _transformers_problem(base, failure)


def _load_on_meta(base: Checkpoint) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    state = {
        name: torch.empty(info.shape, dtype=_torch_dtype(info.dtype), device="meta")
        for name, info in base.tensors.items()
    }
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        local_files_only=True,
        trust_remote_code=False,
        # Every module runs on the meta device with this dtype and attention.
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
            "it comes from another model or tool: leave it out of the checkpoint",
        )
    for name, stored, expected in sorted(info["mismatched_keys"], key=str):
        what = f"is {list(stored)}, config.json says {list(expected)}"
        yield BaseProblem(name, what, _OTHER_CHECKPOINT)
    for message in info.get("error_msgs") or ():
        yield _transformers_problem(base, ValueError(message))


def _try_forward(model: Any) -> Exception | None:
    """Runs three tokens, then one more with their cache. Returns the error, or None."""
    import torch

    def ones(count: int) -> Any:
        return torch.ones(1, count, dtype=torch.long, device="meta")

    try:
        with torch.no_grad():
            first = model.eval()(ones(3), attention_mask=ones(3), use_cache=True)
            model(ones(1), attention_mask=ones(4), past_key_values=first.past_key_values)
    # The base's own code raises errors of any class.
    except Exception as error:  # noqa: BLE001
        undecided = isinstance(error, NotImplementedError) or any(
            part in str(error) for part in _META_DEVICE_ERRORS
        )
        return None if undecided else error
    return None


def _transformers_problem(
    base: Checkpoint, error: Exception, file: str = "config.json"
) -> BaseProblem:
    place = locate_fault(base.path, (file,), error)
    message = "".join(c if c.isprintable() else "?" for c in short_message(error))
    return BaseProblem("", f"{place}: transformers refuses it: {message}", _DAMAGED_VALUE)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences transformers' own reports and bars. An error says the same."""
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
