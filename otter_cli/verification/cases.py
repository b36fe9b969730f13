"""What is compared: one way of running a model. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FORWARDS = ("prefill", "decode", "chunked", "static", "checkpointing")
GENERATES = ("greedy", "beam", "sample", "assisted")


@dataclass(frozen=True)
class Case:
    """One way of running a model on tokens drawn from `seed`.

    `path`: prefill; decode: prefill and `steps` cached ones; chunked: prefill by `chunk` tokens;
    static: as decode, in a static cache; checkpointing: prefill in training mode; greedy, beam,
    sample and assisted: `generate` of `steps` tokens. Padded rows have unequal lengths up to
    `length`. `keep`: logits_to_keep. `threads` 0: as many as the process has.
    """

    path: str
    length: int
    batch: int = 1
    padding: str = "none"
    steps: int = 0
    chunk: int = 0
    keep: int = 0
    threads: int = 0
    attention: str = "sdpa"
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    @property
    def tokens(self) -> int:
        return self.batch * (self.length + self.steps)

    @property
    def kind(self) -> str:
        """The path with what changes its masks and shapes, lengths apart."""
        batch = ", batch" if self.batch > 1 and self.padding == "none" else ""
        return self.path + batch + (f", {self.padding} padding" if self.padding != "none" else "")

    @property
    def label(self) -> str:
        """The case in words, its setting (dtype, attention, device) apart."""
        words = [self.path, f"{self.length} tokens"]
        words += [f"batch {self.batch}"] if self.batch > 1 else []
        words += [f"{self.padding} padding"] if self.padding != "none" else []
        words += [f"{self.steps} steps"] if self.steps else []
        words += [f"chunks of {self.chunk}"] if self.chunk else []
        words += [f"{self.keep} logits kept"] if self.keep else []
        words += [f"{self.threads} threads"] if self.threads else []
        return ", ".join(words)

    @property
    def setting(self) -> str:
        device = "" if self.device == "cpu" else f", {self.device}"
        return f"{self.dtype}, {self.attention}{device}"

    def __str__(self) -> str:
        return f"{self.label} ({self.setting})"

    def record(self) -> dict[str, Any]:
        return asdict(self)
