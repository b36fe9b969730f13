"""Bradley-Terry: the chosen text of a pair is to score above the rejected (METHOD, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, interval, mean
from otter_cli.data.preference import Pair, read_pairs
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import (
    Objective,
    Read,
    Source,
    growing_weights,
    last_tokens,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Pairs


class PairSource(Source):
    """Columns of a file of pairs; `prompt`, where given, is put before both texts."""

    chosen: str = "chosen"
    rejected: str = "rejected"
    prompt: str | None = None


class BradleyTerry(Objective):
    """`-log sigmoid(r(chosen) - r(rejected))` at the last token; or at every prefix, with weights
    that grow with position, since early prefixes say least of how a text ends."""

    kinds: ClassVar[tuple[str, ...]] = ("value",)
    # It cancels out of every difference, so only rounding would move it.
    untouched: ClassVar[tuple[str, ...]] = ("bias",)

    objective: Literal["bradley-terry"] = "bradley-terry"
    positions: Literal["last", "every"] = "last"
    train: PairSource
    test: PairSource | None = None

    @property
    def sources(self) -> tuple[PairSource, PairSource | None]:
        return self.train, self.test

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        if signal.size != 1:
            raise OtterError(
                f"signal {signal.name!r} has {signal.size} attributes; a pair orders one",
                hint="graft one signal for each attribute, with pairs of its own",
            )

    def rows(self, source: PairSource, path: Path, signal: SignalConfig) -> Sequence[Pair]:
        return read_pairs(
            path,
            chosen=source.chosen,
            rejected=source.rejected,
            prompt=source.prompt,
            limit=source.limit,
        )

    def encode(self, rows: Sequence[Pair], tokenizer: Any, max_length: int) -> Pairs:
        from otter_cli.data.datasets import Pairs
        from otter_cli.data.encoding import Encoder

        return Pairs(rows, Encoder(tokenizer, max_length, eos=self.eos))

    def loss(self, read: Read, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        if self.positions == "last":
            return -F.logsigmoid(_margin(read(batch, last_tokens(batch)), batch)).mean()
        columns = _every_column(batch)
        rows = last_tokens(batch)[0].repeat_interleave(columns.shape[1])
        each = -F.logsigmoid(_margin(read(batch, (rows, columns.flatten())), batch))
        return (each * _weights(batch)).sum() / len(each)

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        return {"margin": _margin(read(batch, last_tokens(batch)), batch).squeeze(-1)}

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        margin = outcomes["margin"]
        # Two equal scores order nothing: a signal that is constant is right half the time.
        right = (margin > 0) + 0.5 * (margin == 0)
        return {"accuracy": interval(mean(right), len(margin), what="pair accuracy")}


def _margin(scores: Tensor, batch: Batch) -> Tensor:
    """Chosen minus rejected, [pairs, positions], of scores that go text by text."""
    chosen, rejected = scores.view(len(batch.last), -1).chunk(2)
    return chosen - rejected


def _every_column(batch: Batch) -> Tensor:
    """[texts, tokens]; a text that has ended keeps its last token's score."""
    import torch

    columns = torch.arange(batch.input_ids.shape[1], device=batch.last.device)
    return torch.minimum(columns, batch.last[:, None])


def _weights(batch: Batch) -> Tensor:
    """[pairs, tokens]: up to the end of a pair's longer text, a sum of one for each pair."""
    import torch

    chosen, rejected = batch.last.chunk(2)
    longest = torch.maximum(chosen, rejected)[:, None]
    columns = torch.arange(batch.input_ids.shape[1], device=longest.device)
    return growing_weights(columns, longest) * (columns <= longest)
