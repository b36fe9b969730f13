"""What objectives of preference pairs have in common: columns, encoding, accuracy."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.core.intervals import Interval, interval, mean
from otter_cli.data.columns import Rows, pair_prompt
from otter_cli.data.preference import Pair, read_pairs
from otter_cli.data.records import Place
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import Objective, Source

if TYPE_CHECKING:
    from otter_cli.data.datasets import Pairs


class PairSource(Source):
    """Columns of a file of pairs; `prompt` is put before both texts. Left out, it is a column with
    one of the usual names, unless the texts hold it already; `prompt: null` is none. `margin`: how
    much better the chosen text is, a number."""

    chosen: str = "chosen"
    rejected: str = "rejected"
    prompt: str | None = None
    margin: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected)

    @property
    def context(self) -> str | None:
        return self.prompt

    def used(self, signal: SignalConfig) -> tuple[str, ...]:
        return (*super().used(signal), *((self.margin,) if self.margin else ()))

    def usual(self, rows: Rows, signal: SignalConfig) -> dict[str, Any]:
        if "prompt" in self.model_fields_set:
            return {}
        prompt = pair_prompt(self.chosen, self.rejected, rows)
        return {} if prompt is None else {"prompt": prompt}


class PairObjective(Objective, ABC):
    """Reads pairs; `outcomes` give a margin, chosen over rejected. With `share_prefixes` what the
    two texts of a pair begin with goes through the model once, where that saves tokens."""

    train: PairSource
    test: PairSource | None = None
    share_prefixes: bool = True

    @property
    def sources(self) -> tuple[PairSource, PairSource | None]:
        return self.train, self.test

    def rows(self, source: PairSource, path: Place, signal: SignalConfig) -> Sequence[Pair]:
        return read_pairs(
            path,
            chosen=source.chosen,
            rejected=source.rejected,
            prompt=source.prompt,
            margin=source.margin,
            keep_equal=True,  # `Pairs` leaves them out
        )

    def encode(self, rows: Sequence[Pair], tokenizer: Any, max_length: int) -> Pairs:
        from otter_cli.data.datasets import Pairs
        from otter_cli.data.encoding import Encoder

        encoder = Encoder(tokenizer, max_length, eos=self.eos)
        return Pairs(rows, encoder, share=self.share_prefixes)

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        margin = outcomes["margin"]
        # Two equal scores order nothing: a signal that is constant is right half the time.
        right = (margin > 0) + 0.5 * (margin == 0)
        return {"accuracy": interval(mean(right), len(margin), what="pair accuracy")}
