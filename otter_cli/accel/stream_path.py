"""Which backend runs an insertion's stream, and why not native code: one answer for all reports.

Imports neither torch nor transformers: `otter inspect` reads no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otter_cli.accel.backend_choice import BACKEND_VARIABLE, cannot_run_native, chosen_backend
from otter_cli.accel.native_abi import NATIVE_DTYPES
from otter_cli.accel.native_library import bfloat16_products, native_refusal

if TYPE_CHECKING:
    from otter_cli.families.shape import BaseShape
    from otter_cli.graft.config import InsertionConfig
    from otter_cli.model.otter import OtterForCausalLM

_WORDS = {
    "native": "native code",
    "packed": "torch's operations on packed weights",
    "torch": "torch's operations, layer by layer",
}


@dataclass(frozen=True)
class StreamPath:
    """`backend`: torch, packed or native. `why_not_native`: "" where it is native."""

    backend: str
    dtype: str
    why_not_native: str = ""

    def __str__(self) -> str:
        text = f"{_WORDS[self.backend]} in {self.dtype}"
        if not self.why_not_native:
            return f"{text}, where a pass has few tokens"
        return f"{text} (no native code: {self.why_not_native})"


def stream_path(
    config: InsertionConfig,
    shape: BaseShape,
    *,
    dtype: str,
    device: str = "cpu",
    attention: str = "sdpa",
    base_config: Mapping[str, Any] | None = None,
    build: bool = True,
) -> StreamPath | None:
    """What runs passes of few tokens without gradients: decoding, candidates, short prefills. None
    where the insertion has no stream. `dtype`: of the inserted tensors, by torch's name.
    `base_config`: the base's config.json. With `build` native code is compiled where it is not yet.
    Raises OtterError where OTTER_BACKEND requires native code and it cannot run."""
    if not config.hidden:
        return None
    chosen = chosen_backend()
    if chosen in ("torch", "packed"):
        return StreamPath(chosen, dtype, f"{BACKEND_VARIABLE}={chosen}")
    reason = insertion_refusal(config, shape)
    if config.heads and not reason:
        reason = _heads_refusal(config, base_config or {}, attention)
    reason = reason or place_refusal(dtype, device) or native_refusal(build=build)
    if not reason:
        return StreamPath("native", dtype)
    if chosen == "native":
        raise cannot_run_native(reason)
    return StreamPath("packed", dtype, reason)


def machine_stream_path() -> str:
    """What runs the streams of insertions that native code supports, on this machine, in words."""
    chosen, reason = chosen_backend(), native_refusal()
    if chosen == "native" and reason:
        raise cannot_run_native(reason)
    if reason:
        backend = chosen or "packed"
        return f"{_WORDS[backend]} ({reason})"
    dtypes = f"{', '.join(NATIVE_DTYPES)} (bfloat16 {bfloat16_products()})"
    return f"{_WORDS['native']} where a pass has few tokens, in {dtypes}"


def model_stream_path(model: OtterForCausalLM, *, attention: str = "") -> str:
    """`stream_path` of a loaded graft, in words. Insertions that differ are named. `attention`: the
    base's, if not the one that it has now."""
    texts: dict[str, list[str]] = {}
    for name, insertion in model.capture.insertions.items():
        first = next(insertion.parameters())
        path = stream_path(
            insertion.config,
            model.shape,
            dtype=str(first.dtype).removeprefix("torch."),
            device=first.device.type,
            attention=attention or model.config._attn_implementation or "eager",
            base_config=model.config.to_dict(),
        )
        texts.setdefault(path_text(path), []).append(name)
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())


def path_text(path: StreamPath | None) -> str:
    return "no stream: signals of the base's own state" if path is None else str(path)


def place_refusal(dtype: str, device: str) -> str:
    """Why native code does not run tensors of that dtype there; "" where it does."""
    if device != "cpu":
        return f"the insertion is on {device}, not on a CPU"
    return "" if dtype in NATIVE_DTYPES else f"the inserted tensors are {dtype}"


def _heads_refusal(config: InsertionConfig, base_config: Mapping[str, Any], attention: str) -> str:
    """Why inserted heads beside this attention of the base do not run; "" where they do."""
    if attention != "sdpa":
        return f"the base's attention is {attention}, not sdpa"
    types = base_config.get("layer_types") or []
    windows = base_config.get("sliding_window") and base_config.get("use_sliding_window", True)
    carrying = [kind for layer, kind in enumerate(types) if layer in config.layers]
    if any(kind != "full_attention" for kind in carrying) if types else windows:
        return "layers of the base have a window of attention"
    rope = base_config.get("rope_parameters") or base_config.get("rope_scaling") or {}
    # A damaged configuration can hold anything here; other checks name the damage.
    settings = [each for each in (base_config, rope) if isinstance(each, Mapping)]
    factors = [each.get("partial_rotary_factor") for each in settings]
    if any(factor not in (None, 1.0) for factor in factors):
        return "the base rotates a part of each head"
    return ""


def insertion_refusal(config: InsertionConfig, shape: BaseShape) -> str:
    """Why stream.cpp does not compute an insertion of this form; "" where it does."""
    family = shape.family
    attention, ffn = family.attention, family.ffn
    reasons = {
        f"its norm is {config.norm}, not own": config.norm != "own",
        "the base's attention and FFN run in parallel": shape.parallel,
        "the base has norms after its branches": attention.post_norm or ffn.post_norm,
        "the base's FFN has no gate": ffn.ungated,
        "the base's attention has sinks": attention.sinks,
        "the base's queries are normed jointly": attention.joint_norm and attention.query_norm,
        f"the base's activation is {shape.activation}, not SiLU": (
            shape.activation not in ("silu", "swish")
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
