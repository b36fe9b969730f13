"""Objectives of preference pairs: Bradley-Terry rewards, and autoregressive reward models."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, Share, interval
from otter_cli.data.batches import last_tokens, next_tokens, prefix_weights
from otter_cli.data.columns import SampledRows, pair_prompt
from otter_cli.data.pairs import PreferencePair, read_pairs
from otter_cli.data.tables import TableLike
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import (
    DataSource,
    Objective,
    Outcomes,
    ReadSignal,
    read_selected,
    unused_by_softmax,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, PairDataset


class PairSource(DataSource):
    """Columns of pairs. `prompt` is put before both texts. Its default is a column with a usual
    name, unless the texts hold it already; `prompt: null` is none. `margin`: a number that says how
    much better the chosen text is."""

    text_keys: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    chosen: str = "chosen"
    rejected: str = "rejected"
    prompt: str | None = None
    margin: str | None = None

    def read_columns(self, signal: SignalConfig) -> tuple[str, ...]:
        return (*super().read_columns(signal), *((self.margin,) if self.margin else ()))

    def default_columns(self, rows: SampledRows, signal: SignalConfig) -> dict[str, Any]:
        if "prompt" in self.model_fields_set:
            return {}
        prompt = pair_prompt(self.chosen, self.rejected, rows)
        return {} if prompt is None else {"prompt": prompt}


class PairObjective(Objective, ABC):
    """Reads pairs; `outcomes` give the margin of chosen over rejected. With `share_prefixes` the
    shared beginning of a pair goes through the model once, where that saves tokens."""

    train: PairSource
    test: PairSource | None = None
    share_prefixes: bool = True

    def read_rows(
        self, source: PairSource, table: TableLike, signal: SignalConfig
    ) -> Sequence[PreferencePair]:
        return read_pairs(
            table,
            chosen=source.chosen,
            rejected=source.rejected,
            prompt=source.prompt,
            margin=source.margin,
            keep_equal=True,  # `PairDataset` leaves them out and counts them
        )

    def encode(
        self, rows: Sequence[PreferencePair], tokenizer: Any, max_length: int
    ) -> PairDataset:
        from otter_cli.data.datasets import PairDataset
        from otter_cli.data.encoding import Encoder

        encoder = Encoder(tokenizer, max_length, eos=self.eos)
        return PairDataset(rows, encoder, share=self.share_prefixes)

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        margin = outcomes["margin"]
        # Equal scores count as half right, so that a constant signal has accuracy 0.5.
        right = (margin > 0) + 0.5 * (margin == 0)
        return {"accuracy": interval(Share(right), len(margin), what="pair accuracy")}


class BradleyTerry(PairObjective):
    """`-log sigmoid(r(chosen) - r(rejected) - margin)` at the last token, or at every prefix with
    growing weights (docs/method.md, "Objectives").

    `margin` is multiplied by the pair's own margin where the data has a column of them (Llama 2,
    arXiv 2307.09288, 3.2.2). `centring`: the weight of `(r(chosen) + r(rejected))^2`, which fixes
    the zero of the scores (arXiv 2312.09244, 4.3).
    """

    kinds: ClassVar[tuple[str, ...]] = ("value",)

    objective: Literal["bradley-terry"] = "bradley-terry"
    positions: Literal["last", "every"] = "last"
    margin: NonNegativeFloat | None = None
    centring: NonNegativeFloat = 0.0

    def unused_parameters(self, signal: SignalConfig) -> tuple[str, ...]:
        # The bias cancels out of every difference. Only rounding errors would change it.
        return () if self.centring else ("bias",)

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        if signal.size != 1:
            raise OtterError(
                f"signal {signal.name!r} has {signal.size} attributes; a pair orders one",
                hint="graft one signal for each attribute, with pairs of its own",
            )

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        if self.positions == "last":
            columns = batch.last[:, None]
            weights = columns.new_ones(len(columns) // 2, 1)
        else:
            columns, weights = _clamped_columns(batch), _pair_weights(batch)
        rows = last_tokens(batch)[0].repeat_interleave(columns.shape[1])
        scores = read_selected(read, batch, (rows, columns.flatten()))
        chosen, rejected = _split_pairs(scores, batch)
        each = -F.logsigmoid(chosen - rejected - self._margin(batch))
        if self.centring:
            each = each + self.centring * (chosen + rejected) ** 2
        return (each * weights).sum() / len(each)

    def _margin(self, batch: Batch) -> Tensor | float:
        if batch.labels is None:
            return self.margin or 0.0
        return batch.labels * (1.0 if self.margin is None else self.margin)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        chosen, rejected = _split_pairs(read(batch, last_tokens(batch)), batch)
        return {"margin": (chosen - rejected).squeeze(-1)}


def _split_pairs(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores text by text, as those of the chosen and of the rejected, [pairs, positions] each."""
    chosen, rejected = scores.view(len(batch.last), -1).chunk(2)
    return chosen, rejected


def _clamped_columns(batch: Batch) -> Tensor:
    """Positions [texts, tokens]; after its end a text is read at its last token."""
    import torch

    columns = torch.arange(batch.input_ids.shape[1], device=batch.last.device)
    return torch.minimum(columns, batch.last[:, None])


def _pair_weights(batch: Batch) -> Tensor:
    """[pairs, tokens]: growing weights up to the end of the longer text, with sum one per pair."""
    import torch

    chosen, rejected = batch.last.chunk(2)
    longest = torch.maximum(chosen, rejected)[:, None]
    columns = torch.arange(batch.input_ids.shape[1], device=longest.device)
    return prefix_weights(columns, longest) * (columns <= longest)


class Autoregressive(PairObjective):
    """`-log sigmoid(beta (log pi_r(chosen) - log pi_r(rejected)))`, pi_r the softmax of the action
    values, summed over a text's tokens (GenARM, arXiv 2410.08193). Guidance adds log pi_r."""

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    objective: Literal["autoregressive"] = "autoregressive"
    beta: PositiveFloat = 0.1

    def unused_parameters(self, signal: SignalConfig) -> tuple[str, ...]:
        return unused_by_softmax(signal)

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        return -F.logsigmoid(self.beta * self._margin(read, batch)).mean()

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        return {"margin": self._margin(read, batch)}

    def _margin(self, read: ReadSignal, batch: Batch) -> Tensor:
        """Difference of the summed log-probabilities, [pairs]."""
        (rows, columns), taken = next_tokens(batch)
        # Tokens of a shared beginning cancel, so their logits are not computed.
        differing = columns + 1 >= _shared_tokens(batch)[rows]
        rows, columns, taken = rows[differing], columns[differing], taken[differing]
        logs = read(batch, (rows, columns)).log_softmax(-1).gather(-1, taken).squeeze(-1)
        sums = logs.new_zeros(len(batch.last)).index_add(0, rows, logs)
        chosen, rejected = sums.chunk(2)
        return chosen - rejected


def _shared_tokens(batch: Batch) -> Tensor:
    """The number of tokens that both texts of a pair begin with, [texts]."""
    chosen, rejected = batch.input_ids.chunk(2)
    real = batch.attention_mask.bool()
    same = (chosen == rejected) & real.chunk(2)[0] & real.chunk(2)[1]
    return same.long().cumprod(1).sum(1).repeat(2)
