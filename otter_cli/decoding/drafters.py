"""Drafters guess the tokens after the next one; the base verifies them in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State


@dataclass(frozen=True)
class FutureDrafter:
    """Each future head's best token, as a chain: head j at t guesses t+1+j (METHOD, 3)."""

    signal: str = "future"

    needs_stream = True

    def check(self, session: DecodingSession) -> None:
        """Raises OtterError where the signal predicts no tokens."""
        config = session.model.signal_configs.get(self.signal)
        if config is None or config.kind != "future":
            known = session.model.signal_configs.values()
            drafting = [signal.name for signal in known if signal.kind == "future"]
            raise OtterError(
                f"signal {self.signal!r} is no future signal of this graft",
                hint=f"its future signals: {', '.join(drafting)}"
                if drafting
                else "graft one with --signal future:3, and train it",
            )

    def draft(
        self, session: DecodingSession, state: State, texts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Tokens [rows, n] after the pending one, and how many of them count, [rows]."""
        drafts = session.read(self.signal, state)[:, 0].argmax(-1)
        return drafts, torch.full_like(drafts[:, 0], drafts.shape[1])


@dataclass(frozen=True)
class PromptLookup:
    """What followed the last n-gram when it last occurred in the text (Saxena 2023)."""

    ngram: int = 3
    length: int = 4

    needs_stream = False

    def check(self, session: DecodingSession) -> None:
        """Works with every graft."""

    def draft(
        self, session: DecodingSession, state: State, texts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Tokens [rows, n] after the pending one, and how many of them count, [rows]."""
        found = [self.continuation(list(text)) for text in texts]
        width = max(map(len, found))
        padded = [tokens + [0] * (width - len(tokens)) for tokens in found]
        lengths = torch.tensor([len(tokens) for tokens in found], device=session.device)
        return torch.tensor(padded, dtype=torch.long, device=session.device), lengths

    def continuation(self, text: list[int]) -> list[int]:
        """The longest n-gram that recurs wins; of its occurrences the last."""
        for n in range(min(self.ngram, len(text) - 1), 0, -1):
            tail = text[-n:]
            for start in range(len(text) - n - 1, -1, -1):
                if text[start : start + n] == tail:
                    return text[start + n : start + n + self.length]
        return []


Drafter = FutureDrafter | PromptLookup
