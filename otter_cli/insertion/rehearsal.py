"""A base's load rehearsed in transformers on the meta device: every name, shape and setting, and
two steps of a forward, without reading one weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.core.library_errors import at_fault, message_of
from otter_cli.insertion.check import GENERATION, Contradiction

# What the meta device itself cannot do says nothing about the base.
_UNDECIDED = ("meta tensor", "data-dependent")

_DAMAGED = "the value is damaged or of the wrong type: fetch the file again, or mend it"


def rehearse(base: Checkpoint) -> Iterator[Contradiction]:
    """What transformers says against the base: tensors that it misses, does not expect or cannot
    fit, settings that it refuses, and a forward that fails."""
    with _quietly():
        file = GENERATION
        try:
            _read_generation(base)
            file = "config.json"
            model, info = _load(base)
        except Exception as refusal:  # noqa: BLE001 - of any class: configurations, modules, converters
            yield _refused(base, refusal, file)
            return
        faults = list(_tensors(base, info))
        yield from faults
        if not faults and (error := _run(model)) is not None:
            yield _refused(base, error)


def _read_generation(base: Checkpoint) -> None:
    from transformers import GenerationConfig

    if GENERATION in base.files:
        GenerationConfig.from_dict(read_object(base.path / GENERATION))


def _load(base: Checkpoint) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    state = {
        name: torch.empty(info.shape, dtype=_dtype(info.dtype), device="meta")
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


def _dtype(stored: str) -> Any:
    import torch

    names = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat"}
    kind = stored.rstrip("0123456789")
    if stored == "BOOL":
        return torch.bool
    return getattr(torch, names.get(kind, "") + stored[len(kind) :], torch.uint8)


def _tensors(base: Checkpoint, info: dict[str, Any]) -> Iterator[Contradiction]:
    for name in sorted(info["missing_keys"]):
        yield Contradiction(
            name, "is missing", "transformers would fill it at random; are all shards there?"
        )
    for name in sorted(info["unexpected_keys"]):
        yield Contradiction(
            name,
            "belongs to no module of this base",
            "it is another model's, or another tool's: leave it out of the checkpoint",
        )
    for name, stored, wanted in sorted(info["mismatched_keys"], key=str):
        what = f"is {list(stored)}, config.json says {list(wanted)}"
        yield Contradiction(name, what, "the configuration belongs to another checkpoint")
    for message in info.get("error_msgs") or ():
        yield _refused(base, ValueError(message))


def _run(model: Any) -> Exception | None:
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
            part in str(error) for part in _UNDECIDED
        )
        return None if undecided else error
    return None


def _refused(base: Checkpoint, error: Exception, file: str = "config.json") -> Contradiction:
    at = at_fault(base.path, (file,), error)
    shown = "".join(c if c.isprintable() else "?" for c in message_of(error))
    return Contradiction("", f"{at}: transformers refuses it: {shown}", _DAMAGED)


@contextmanager
def _quietly() -> Iterator[None]:
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
