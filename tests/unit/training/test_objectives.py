"""Losses against plain re-computations, and which positions they read."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import Positions
from otter_cli.data.datasets import Batch, pad_batch
from otter_cli.signals.config import parse_signal
from otter_cli.training.objectives.labelled import Classification
from otter_cli.training.objectives.pairs import BradleyTerry
from otter_cli.training.objectives.plain_text import FutureTokens
from tests.support.training import softplus

ROWS = [[5, 6, 7, 8], [5, 9], [5, 6, 3], [4, 4, 4, 4]]


class Table:
    """A signal that is looked up by row and column, and remembers what was asked for."""

    def __init__(self, *shape: int) -> None:
        self.values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        self.asked: set[tuple[int, int]] = set()

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        self.asked = {(int(r), int(c)) for r, c in zip(*at, strict=True)}
        return self.values[at]


def bradley_terry(**more: Any) -> BradleyTerry:
    return BradleyTerry.model_validate({"train": {"path": "pairs.jsonl"}, **more})


def classification(**more: Any) -> Classification:
    return Classification.model_validate({"train": {"path": "labelled.jsonl"}, **more})


def future(**more: Any) -> FutureTokens:
    return FutureTokens.model_validate({"train": {"path": "texts.jsonl"}, **more})


def test_bradley_terry_reads_the_last_tokens_only() -> None:
    read, batch = Table(4, 4), pad_batch(ROWS, 0)
    loss = bradley_terry().loss(read, batch)
    assert read.asked == {(0, 3), (1, 1), (2, 2), (3, 3)}
    v = read.values
    # Chosen are the first two rows, rejected the last two: -log sigmoid(x) is softplus(-x).
    expected = np.mean([softplus(v[2, 2] - v[0, 3]), softplus(v[3, 3] - v[1, 1])])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_bradley_terry_at_every_prefix_holds_a_text_that_ended() -> None:
    read, batch = Table(4, 4), pad_batch(ROWS, 0)
    loss = bradley_terry(positions="every").loss(read, batch)
    last = [3, 1, 2, 3]
    score = [[read.values[r, min(t, last[r])].item() for t in range(4)] for r in range(4)]
    each = [[softplus(score[i + 2][t] - score[i][t]) for t in range(4)] for i in range(2)]
    expected = np.mean([np.average(terms, weights=[1, 2, 3, 4]) for terms in each])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_padding_beyond_a_pair_does_not_count() -> None:
    read = Table(4, 9)
    texts = [[5, 6, 7], [5, 9], [5, 6], [4, 4, 4]]
    narrow, wide = pad_batch(texts, 0), pad_batch([*texts, [1] * 9], 0)
    wide = replace(
        wide,
        input_ids=wide.input_ids[:4],
        attention_mask=wide.attention_mask[:4],
        last=wide.last[:4],
    )
    objective = bradley_terry(positions="every")
    assert objective.loss(read, wide).item() == pytest.approx(objective.loss(read, narrow).item())


def test_pair_accuracy_counts_a_tie_half() -> None:
    metrics = bradley_terry().metrics(
        {"margin": np.array([1.0, -1.0, 0.0, 2.0])}, parse_signal("reward")
    )
    assert metrics["accuracy"].mean == (1 + 0 + 0.5 + 1) / 4
    assert metrics["accuracy"].n == 4


def test_outcomes_are_margins_of_pairs() -> None:
    read = Table(4, 4)
    margin = bradley_terry().outcomes(read, pad_batch(ROWS, 0))["margin"]
    v = read.values
    assert torch.equal(margin, torch.stack([v[0, 3] - v[2, 2], v[1, 1] - v[3, 3]]))


def _labelled() -> Batch:
    return replace(pad_batch(ROWS, 0), labels=torch.tensor([[1.0, 0], [0, 0], [0.5, 1], [1, 1]]))


def _cross_entropy(logit: float, label: float) -> float:
    return label * softplus(-logit) + (1 - label) * softplus(logit)


def test_classification_at_the_end() -> None:
    read, batch = Table(4, 4, 2), _labelled()
    loss = classification().loss(read, batch)
    assert batch.labels is not None
    last = [3, 1, 2, 3]
    terms = [
        _cross_entropy(read.values[r, last[r], k].item(), batch.labels[r, k].item())
        for r in range(4)
        for k in range(2)
    ]
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_classification_at_every_token_weighs_texts_alike() -> None:
    read, batch = Table(4, 4, 2), _labelled()
    loss = classification(positions="every").loss(read, batch)
    assert batch.labels is not None
    texts = []
    for r, length in enumerate([4, 2, 3, 4]):
        terms = [
            [_cross_entropy(read.values[r, t, k].item(), batch.labels[r, k].item()) for k in (0, 1)]
            for t in range(length)
        ]
        texts.append(np.average(np.mean(terms, axis=1), weights=range(1, length + 1)))
    assert loss.item() == pytest.approx(np.mean(texts), rel=1e-5)
    assert (1, 2) not in read.asked, "padding has no label"


def test_classes_are_told_apart_in_metrics() -> None:
    signal = parse_signal("classes:rude,loud")
    scores = np.array([[2.0, -1], [-1, -2], [1, 3], [-2, 1]])
    labels = np.array([[1.0, 0], [0, 0], [1, 0], [0, 1]])
    metrics = classification().metrics({"score": scores, "label": labels}, signal)
    assert metrics["auroc/rude"].mean == 1 and metrics["f1/rude"].mean == 1
    assert metrics["auroc/loud"].mean == pytest.approx(2 / 3)
    assert metrics["accuracy/loud"].mean == 0.75
    assert "auroc" in classification().metrics(
        {"score": scores[:, :1], "label": labels[:, :1]}, parse_signal("toxicity")
    )


def test_metrics_of_a_class_that_never_occurs_are_refused() -> None:
    with pytest.raises(OtterError, match="auroc of toxicity is undefined"):
        classification().metrics(
            {"score": np.zeros((3, 1)), "label": np.ones((3, 1))}, parse_signal("toxicity")
        )


def _blocks() -> Batch:
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    return Batch(ids, torch.ones_like(ids), torch.tensor([4, 4]))


def test_future_heads_name_the_tokens_from_two_on() -> None:
    read, batch = Heads(2, 5, 3, 11), _blocks()
    loss = future(head_weights=[1.0, 0.5, 0.25]).loss(read, batch)
    # From the last two positions no head's token is inside: they skip the vocabulary.
    places = [(r, t) for r in range(2) for t in range(3)]
    assert read.asked == set(places)
    # The text's own tokens are those that a cell follows; 0 where no target comes after.
    for (r, t), following in zip(places, read.followed, strict=True):
        assert following == [*batch.input_ids[r, t + 1 :].tolist(), 0][:3]
    logs = read.values.log_softmax(-1)
    heads = []
    for k in range(3):
        terms = [
            -logs[r, t, k, batch.input_ids[r, t + 2 + k]].item()
            for r in range(2)
            for t in range(5)
            if t + 2 + k < 5
        ]
        heads.append(np.mean(terms))
    expected = (heads[0] + 0.5 * heads[1] + 0.25 * heads[2]) / 1.75
    assert loss.item() == pytest.approx(expected, rel=1e-5)


class Heads(Table):
    """Of future tokens [rows, tokens, heads, vocab]; with a cell, what its own guesses lead to is
    a table too, `own`."""

    def __init__(self, *shape: int, own: Tensor | None = None) -> None:
        super().__init__(*shape)
        form = "plain" if own is None else "4"
        self.signal, self.own = parse_signal(f"future:{shape[2]},{form}"), own

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        assert tokens is not None
        self.followed = tokens.tolist()
        if self.own is not None and tokens.shape[1] == 1:
            assert torch.equal(tokens[:, 0], batch.input_ids[at[0], at[1] + 1])
            return self.own[at]
        assert tokens.shape[1] == self.signal.size
        return super().__call__(batch, at)


class WithBase(Heads):
    """The same beside a base, whose logits are a table too, [rows, tokens, vocab]."""

    def __init__(self, base: Tensor, *shape: int) -> None:
        super().__init__(*shape)
        self.base = base

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        return self.base[at]


def test_future_heads_may_learn_what_the_base_would_say() -> None:
    draw = torch.Generator().manual_seed(1)
    batch, base = _blocks(), torch.randn(2, 5, 11, generator=draw)
    read = WithBase(base, 2, 5, 3, 11)
    loss = future(targets="base", head_weights=[1.0, 0.5, 0.25]).loss(read, batch)
    p, q = base.double().softmax(-1), read.values.double().softmax(-1)
    heads = []
    for k in range(3):
        terms = [
            (p[r, t + k + 1] * (p[r, t + k + 1] / q[r, t, k]).log()).sum().item()
            for r in range(2)
            for t in range(3)
            if t + k + 1 < 5
        ]
        heads.append(np.mean(terms))
    assert loss.item() == pytest.approx(np.dot(heads, [1, 0.5, 0.25]) / 1.75, rel=1e-5)


def test_heads_that_say_what_the_base_says_have_no_loss() -> None:
    base = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(1))
    read = WithBase(base, 2, 5, 2, 11)
    for k in range(2):
        read.values[:, : 4 - k, k] = base[:, 1 + k :]
    assert future(targets="base").loss(read, _blocks()).item() == pytest.approx(0, abs=1e-6)


def test_future_hits_are_counted_by_head() -> None:
    batch = _blocks()
    right = torch.zeros(2, 5, 2, 11)
    for r in range(2):
        for t in range(3):
            right[r, t, 0, batch.input_ids[r, t + 2]] = 1  # the first head knows, the second not
    read = Heads(2, 5, 2, 11)
    read.values = right
    outcomes = future().outcomes(read, batch)
    assert outcomes["hits"].tolist() == [[3, 0], [3, 0]]
    assert outcomes["tokens"].tolist() == [[3, 2], [3, 2]]
    metrics = future().metrics({n: o.numpy() for n, o in outcomes.items()}, read.signal)
    assert (metrics["top1_t+2"].mean, metrics["top1_t+3"].mean) == (1, 0)
    # A chain of two, where both tokens are inside: the first is right, and no more.
    assert metrics["run"].mean == 1 and "own_t+2" not in metrics


def test_a_cell_is_measured_after_the_text_and_after_itself() -> None:
    batch, own = _blocks(), torch.zeros(2, 5, 2, 11)
    read = Heads(2, 5, 2, 11, own=own)
    read.values = torch.zeros(2, 5, 2, 11)
    for r in range(2):
        for t in range(3):
            own[r, t, 0, batch.input_ids[r, t + 2]] = 1
            read.values[r, t, 0, batch.input_ids[r, t + 2] if t else 0] = 1
            read.values[r, t, 1, batch.input_ids[r, t + 3] if t < 2 else 0] = 1
    outcomes = future().outcomes(read, batch)
    metrics = future().metrics({n: o.numpy() for n, o in outcomes.items()}, read.signal)
    means = {name: metric.mean for name, metric in metrics.items()}
    # Of the two places where a chain of two is inside, the first head fails at one: no run there.
    expected = {"top1_t+2": 2 / 3, "top1_t+3": 1, "own_t+2": 1, "own_t+3": 0, "run": 1}
    assert means == pytest.approx(expected)


@pytest.mark.parametrize(
    ("objective", "signal", "what"),
    [
        (bradley_terry(), "toxicity", "of kind classes; bradley-terry trains value"),
        (bradley_terry(), "reward:2", "has 2 attributes"),
        (classification(), "future:2", "of kind future; classification trains classes"),
        (future(head_weights=[1.0]), "future:2", "head_weights has 1 numbers"),
    ],
)
def test_an_objective_refuses_what_it_cannot_train(objective: Any, signal: str, what: str) -> None:
    with pytest.raises(OtterError, match=what):
        objective.check(parse_signal(signal))
