"""What `otter generate` was asked for, by its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError
from otter_cli.decoding import Gate, Sampling, SignalBound

PROMPT_LOOKUP = "prompt-lookup"


@dataclass(frozen=True)
class Asked:
    """Texts as they were typed where only the loaded graft can say what they mean."""

    sampling: Sampling
    guides: tuple[str, ...]
    strength: float
    candidates: int
    label: str | None
    gate: Gate | None
    stops: tuple[str, ...]
    rejects: tuple[SignalBound, ...]
    signals: tuple[str, ...]
    draft: str | None
    tree: str | None
    typical: bool
    exact: bool
    # None: as the base's tokenizer has a chat template, or none.
    chat: bool | None
    read_every: int | None
    batch: int
    stream: bool | None

    @property
    def draft_folder(self) -> Path | None:
        """The draft model's, where the draft is one's."""
        folder = Path(self.draft or "")
        return folder if self.draft and folder.is_dir() else None

    def check(self) -> None:
        """Raises OtterError for options that go with nothing."""
        if self.batch < 1:
            raise OtterError(f"--batch is {self.batch}", hint="at least 1")
        if "" in self.stops:
            raise OtterError(
                "--stop is empty, and an empty string ends every text at once",
                hint="give the string to end at",
            )
        by_heads = self.draft not in (None, PROMPT_LOOKUP) and not self.draft_folder
        if self.tree is not None and not by_heads:
            raise OtterError("--tree needs --draft with a future signal", hint="--draft future")
        if self.typical and self.draft is None:
            raise OtterError("--typical accepts drafts, and there are none", hint="--draft future")
