"""Objectives of plain text in blocks: future tokens (Medusa-1) and language models (DExperts)."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, Share, interval, ratio
from otter_cli.data.batches import Positions, next_tokens
from otter_cli.data.tables import TableLike
from otter_cli.data.texts import read_texts
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.finite import require_finite
from otter_cli.training.objectives.objective import (
    DataSource,
    Objective,
    Outcomes,
    ReadSignal,
    ReadSignalWithBase,
    unused_by_softmax,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, BlockDataset


class PlainTextSource(DataSource):
    """The paragraphs of a .txt file, or a column of rows; `prompt`: a column before it."""

    text_keys: ClassVar[tuple[str, ...]] = ("column",)

    column: str = "text"
    prompt: str | None = None


class PlainTextObjective(Objective, ABC):
    """Reads texts, joined end to end and cut into blocks of the recipe's `max_length`."""

    train: PlainTextSource
    test: PlainTextSource | None = None

    def read_rows(
        self, source: PlainTextSource, table: TableLike, signal: SignalConfig
    ) -> Sequence[str]:
        return read_texts(table, column=source.column, prompt=source.prompt)

    def encode(self, rows: Sequence[str], tokenizer: Any, max_length: int) -> BlockDataset:
        from otter_cli.data.datasets import BlockDataset

        return BlockDataset(rows, tokenizer, max_length, eos=self.eos)


# The base's own head predicts token t+1, the first future head t+2.
_FIRST_OFFSET = 2


class FutureTokens(PlainTextObjective):
    """Cross-entropy of each head, weighted by `head_decay ** k` (Medusa: 0.8) or `head_weights`. A
    cell reads the text's own tokens as those drafted before (docs/method.md, "Objectives").

    With `targets: base` the KL of the base's distribution, after it has read the text up to the
    token, to the head's: a draft is accepted if the base predicts it, whatever the text says.
    """

    kinds: ClassVar[tuple[str, ...]] = ("future",)

    objective: Literal["future-tokens"] = "future-tokens"
    head_decay: float = Field(default=0.8, gt=0, le=1)
    head_weights: tuple[float, ...] | None = None
    targets: Literal["text", "base"] = "text"

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        if self.head_weights is not None and len(self.head_weights) != signal.size:
            raise OtterError(
                f"head_weights has {len(self.head_weights)} numbers; "
                f"signal {signal.name!r} has {signal.size} heads",
                hint="give one for each head, or head_decay instead",
            )

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        import torch
        import torch.nn.functional as F

        with_base = cast(ReadSignalWithBase, read)
        heads = with_base.signal.size
        logits = read(batch, _positions(batch), _following(batch, heads))  # [N, heads, vocab]
        weights = self.head_weights or [self.head_decay**k for k in range(heads)]
        if self.targets == "base":
            each = [_kl_to_head(with_base, batch, logits[:, k], k) for k in range(heads)]
        else:
            targets = _targets(batch, heads)
            each = [F.cross_entropy(logits[:, k], targets[:, k]) for k in range(heads)]
        scale = torch.tensor(weights, device=logits.device) / sum(weights)
        return (torch.stack(each) * scale).sum()

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        signal = cast(ReadSignalWithBase, read).signal
        at, following = _positions(batch), _following(batch, signal.size)
        targets = _targets(batch, signal.size)
        logits = read(batch, at, following)
        require_finite(logits, f"signal {signal.name!r}")
        hits = logits.argmax(-1) == targets  # [N, heads]
        # A run counts only where the targets of all heads lie inside the block.
        whole = (targets >= 0).all(-1)
        counts = {
            "hits": hits,
            "tokens": targets >= 0,
            "run": hits.cumprod(-1).sum(-1, keepdim=True) * whole[:, None],
            "whole": whole[:, None],
        }
        if signal.width != 0:
            # When it drafts, the cell knows the next token alone.
            counts["own"] = read(batch, at, following[:, :1]).argmax(-1) == targets
        rows = len(batch.last)
        return {n: each.view(rows, -1, each.shape[-1]).sum(1) for n, each in counts.items()}

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        """Top-1 accuracy of each head; of a cell after the text's tokens, and (`own`) after its own
        predictions. `run`: the number of right drafts of a chain before the first wrong one. Whole
        blocks are resampled, since the tokens of a text depend on each other."""
        tokens, blocks = outcomes["tokens"], len(outcomes["tokens"])
        metrics = {
            f"{name}_t+{k + _FIRST_OFFSET}": interval(
                Share(outcomes[what][:, k], tokens[:, k]), blocks
            )
            for name, what in (("top1", "hits"), ("own", "own"))
            if what in outcomes
            for k in range(signal.size)
        }
        run, whole = outcomes["run"][:, 0], outcomes["whole"][:, 0]
        return metrics | {"run": interval(ratio(run, whole), blocks)}


def _positions(batch: Batch) -> Positions:
    """All positions whose first head's token lies inside the block. Blocks have no padding."""
    import torch

    rows, columns = batch.input_ids.shape
    every = torch.arange(columns - _FIRST_OFFSET, device=batch.input_ids.device)
    return torch.arange(rows, device=every.device).repeat_interleave(len(every)), every.repeat(rows)


def _kl_to_head(read: ReadSignalWithBase, batch: Batch, logits: Tensor, head: int) -> Tensor:
    """Mean over positions t of KL(p(. | x <= t+k+1) to head k's at t), in nats, k from 0."""
    import torch.nn.functional as F

    rows, columns = _positions(batch)
    # The last positions have a target as long as the base has a prediction inside the block.
    inside = columns + head + 1 < batch.input_ids.shape[1]
    at = rows[inside], columns[inside] + head + 1
    base = read.base_logits(batch, at).float().log_softmax(-1)
    head_logs = logits[inside].float().log_softmax(-1)
    return F.kl_div(head_logs, base, log_target=True, reduction="batchmean")


def _following(batch: Batch, heads: int) -> Tensor:
    """The tokens t+1 ... t+heads at `_positions` t, [N, heads]; past the block's end token 0, after
    which there is no target."""
    import torch.nn.functional as F

    following = F.pad(batch.input_ids, (0, heads - 1))[:, 1:-1]
    return following.unfold(1, heads, 1).flatten(0, 1)


def _targets(batch: Batch, heads: int) -> Tensor:
    """Token ids [N, heads] at `_positions`; past the end -100, which cross-entropy ignores."""
    import torch.nn.functional as F

    following = F.pad(batch.input_ids, (0, heads - 1), value=-100)[:, _FIRST_OFFSET:]
    return following.unfold(1, heads, 1).flatten(0, 1)


class LanguageModel(PlainTextObjective):
    """Cross-entropy of the next token, in nats. An insertion's action values q are added to the
    base's logits l: an expert is `softmax(l + q)`, so `l + alpha (q+ - q-)` is DExperts'
    `l + alpha (l+ - l-)` (arXiv 2105.03023, 2.1). A separate language model gives its own logits.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vocabulary",)

    objective: Literal["language-model"] = "language-model"

    def unused_parameters(self, signal: SignalConfig) -> tuple[str, ...]:
        return unused_by_softmax(signal)

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        at, taken = next_tokens(batch)
        return _negative_log_likelihood(read, batch, at, taken).mean()

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        at, taken = next_tokens(batch)
        each = _negative_log_likelihood(read, batch, at, taken)
        rows = each.new_zeros(len(batch.last), 1)
        return {
            "nats": rows.index_add(0, at[0], each[:, None]),
            "tokens": rows.index_add(0, at[0], each.new_ones(len(each), 1)),
        }

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        """`nats` per token, by resampled blocks."""
        nats, tokens = outcomes["nats"][:, 0], outcomes["tokens"][:, 0]
        return {"nats": interval(ratio(nats, tokens), len(nats))}


def _negative_log_likelihood(
    read: ReadSignal, batch: Batch, at: Positions, taken: Tensor
) -> Tensor:
    """-log p of the next tokens [N, 1], [N]."""
    logits = read(batch, at)
    if isinstance(read, ReadSignalWithBase):
        logits = logits + read.base_logits(batch, at)
    return -logits.log_softmax(-1).gather(-1, taken).squeeze(-1)
