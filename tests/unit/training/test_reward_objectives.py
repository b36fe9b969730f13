"""Objectives of values and of action values against plain re-computations."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import Positions
from otter_cli.data.datasets import Batch, pad_batch
from otter_cli.data.encoding import Encoder
from otter_cli.scorers.text_scorer import prefix_values
from otter_cli.signals.config import parse_signal
from otter_cli.training.objectives.action_values import (
    ActionConsistency,
    ActionValues,
    Distillation,
)
from otter_cli.training.objectives.labelled import Classification, Pointwise
from otter_cli.training.objectives.pairs import Autoregressive, BradleyTerry
from otter_cli.training.trainable import GraftTrainable
from tests.support.training import small_graft, small_recipe, softplus

ROWS = [[5, 6, 7, 8], [5, 9, 3], [5, 6, 3], [5, 9, 4, 4]]
LAST, LABELS = [3, 2, 2, 3], [1.0, 0.25, 0.5, 0.0]
VOCAB = 11


class Table:
    """A signal that is looked up by row and column; of action values, by token too."""

    def __init__(self, *shape: int) -> None:
        self.values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        self.values.requires_grad_()

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        found = self.values[at]
        return found if tokens is None else found.gather(-1, tokens)

    def of(self, *where: int) -> float:
        return self.values[where].item()


def _batch(labels: list[list[float]] | None = None) -> Batch:
    labels = [[label] for label in LABELS] if labels is None else labels
    return replace(pad_batch(ROWS, 0), labels=torch.tensor(labels))


def _make(objective: type[Any], **more: Any) -> Any:
    return objective.model_validate({"train": {"path": "rows.jsonl"}, **more})


def _growing(terms: list[list[float]]) -> float:
    """The mean over texts of terms weighed 1, 2, 3 ..."""
    return float(np.mean([np.average(t, weights=range(1, len(t) + 1)) for t in terms]))


def test_a_margin_and_centring_enter_bradley_terry() -> None:
    read = Table(4, 4)
    chosen, rejected = ([read.of(r, LAST[r]) for r in rows] for rows in ((0, 1), (2, 3)))
    pairs = list(zip(chosen, rejected, strict=True))
    plain = replace(_batch(), labels=None)
    loss = _make(BradleyTerry, margin=0.5, centring=0.1).loss(read, plain)
    expected = [softplus(r - c + 0.5) + 0.1 * (c + r) ** 2 for c, r in pairs]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    # A column of margins counts as it is, or times the recipe's.
    own = replace(plain, labels=torch.tensor([[1.0], [2.0]]))
    for times in (None, 3.0):
        loss = _make(BradleyTerry, margin=times).loss(read, own)
        expected = [
            softplus(r - c + m * (times or 1)) for (c, r), m in zip(pairs, (1, 2), strict=True)
        ]
        assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_bias_is_trained_where_scores_have_a_zero() -> None:
    signal = parse_signal("reward")
    assert _make(BradleyTerry).unused_parameters(signal) == ("bias",)
    assert _make(BradleyTerry, centring=0.01).unused_parameters(signal) == ()


def test_margins_are_read_from_their_column(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"chosen": "ab", "rejected": "cd", "by": m} for m in (1, 0.5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = _make(BradleyTerry, train={"path": str(path), "margin": "by"})
    found = objective.read_rows(objective.train, path, parse_signal("reward"))
    batch = objective.encode(found, tiny_tokenizer, 16).batch([1, 0])
    assert batch.labels is not None and batch.labels.tolist() == [[0.5], [1.0]]
    path.write_text('{"chosen": "ab", "rejected": "cd", "by": -1}\n' * 2)
    with pytest.raises(OtterError, match="line 1: 'by' is -1, outside 0"):
        objective.read_rows(objective.train, path, parse_signal("reward"))


@pytest.mark.parametrize("loss_of", ["squared", "cross-entropy"])
def test_pointwise_values_of_attributes_at_every_prefix(loss_of: str) -> None:
    read, labels = Table(4, 4, 2), [[1.0, 0.5], [0.0, 0.25], [0.5, 1.0], [1.0, 0.0]]

    def term(r: int, t: int) -> float:
        each = []
        for k in range(2):
            score, label = read.of(r, t, k), labels[r][k]
            entropy = label * softplus(-score) + (1 - label) * softplus(score)
            each.append((score - label) ** 2 if loss_of == "squared" else entropy)
        return float(np.mean(each))

    every = _make(Pointwise, loss_of=loss_of).loss(read, _batch(labels))
    terms = [[term(r, t) for t in range(LAST[r] + 1)] for r in range(4)]
    assert every.item() == pytest.approx(_growing(terms), rel=1e-5)
    last = _make(Pointwise, loss_of=loss_of, positions="last").loss(read, _batch(labels))
    assert last.item() == pytest.approx(np.mean([t[-1] for t in terms]), rel=1e-5)


def test_metrics_of_values_are_those_of_numpy() -> None:
    draw = np.random.default_rng(0)
    value, label = draw.random((30, 2)), draw.random((30, 2))
    found = _make(Pointwise).metrics({"value": value, "label": label}, parse_signal("value:a,b"))
    assert found["squared_error/b"].mean == pytest.approx(((value - label)[:, 1] ** 2).mean())
    expected = np.corrcoef(value[:, 0], label[:, 0])[0, 1]
    assert found["correlation/a"].mean == pytest.approx(expected)


def test_scores_of_a_flagged_text_may_not_fall() -> None:
    read, batch = Table(4, 4, 1), _batch()
    plain = _make(Classification, positions="every").loss(read, batch).item()
    loss = _make(Classification, positions="every", consistency=2.0).loss(read, batch).item()
    p = read.values[..., 0].sigmoid()
    falls = [
        np.mean([max(0.0, (p[r, t] - p[r, t + 1]).item()) for t in range(LAST[r])])
        if LABELS[r] >= 0.5 and LAST[r]
        else 0.0
        for r in range(4)
    ]
    assert sum(falls) > 0
    assert loss - plain == pytest.approx(2 * np.mean(falls), rel=1e-4)
    with pytest.raises(ValueError, match="it needs positions: every"):
        _make(Classification, consistency=1.0)


@pytest.mark.parametrize("loss_of", ["squared", "cross-entropy"])
def test_action_values_are_read_of_the_token_that_followed(loss_of: str) -> None:
    read = Table(4, 4, VOCAB)

    def term(r: int, t: int) -> float:
        score, label = read.of(r, t, ROWS[r][t + 1]), LABELS[r]
        entropy = label * softplus(-score) + (1 - label) * softplus(score)
        return (score - label) ** 2 if loss_of == "squared" else entropy

    objective = _make(ActionValues, loss_of=loss_of)
    terms = [[term(r, t) for t in range(LAST[r])] for r in range(4)]
    assert objective.loss(read, _batch()).item() == pytest.approx(_growing(terms), rel=1e-5)
    value = objective.outcomes(read, _batch())["value"]
    expected = [read.of(r, LAST[r] - 1, ROWS[r][LAST[r]]) for r in range(4)]
    if loss_of == "cross-entropy":
        expected = [1 / (1 + math.exp(-score)) for score in expected]
    assert value[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_label_holds_from_its_span_on() -> None:
    read, since = Table(4, 4, 1), [2, 0, 2, 1]
    batch = replace(_batch(), label_start=torch.tensor(since))
    loss = _make(Classification, positions="every").loss(read, batch).item()
    terms = [
        [
            y * softplus(-read.of(r, t, 0)) + (1 - y) * softplus(read.of(r, t, 0))
            for t in range(LAST[r] + 1)
            for y in [LABELS[r] if t >= since[r] else 0.0]
        ]
        for r in range(4)
    ]
    assert loss == pytest.approx(_growing(terms), rel=1e-5)


def test_spans_are_read_from_their_column(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "fine, you fool", "toxicity": 1, "from": 10},
        {"text": "fine", "toxicity": 0, "from": None},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = {"path": "rows.jsonl", "since": "from"}
    objective = Classification.model_validate({"positions": "every", "train": source, "eos": False})
    found = objective.read_rows(objective.train, path, parse_signal("toxicity"))
    for length in (32, 8):
        batch = objective.encode(found, tiny_tokenizer, length).batch([0, 1])
        assert batch.label_start is not None and batch.label_start[1] == 0
        token = batch.input_ids[0, batch.label_start[0]]
        assert tiny_tokenizer.decode(token) == "f", "of fool, wherever the text was cut"
    path.write_text("\n".join(json.dumps({**row, "from": 14}) for row in rows))
    with pytest.raises(OtterError, match="line 1: 'from' is 14, outside 0 to 13"):
        objective.read_rows(objective.train, path, parse_signal("toxicity"))


def test_a_span_that_was_cut_off_begins_the_text(tiny_tokenizer: Any) -> None:
    encoder = Encoder(tiny_tokenizer, 5)
    (ids,) = encoder(["abcdefgh"]).ids
    assert encoder.token_at_character("abcdefgh", ids, 0) == 1
    assert tiny_tokenizer.decode(ids[encoder.token_at_character("abcdefgh", ids, 6)]) == "g"


def test_action_consistency_takes_the_best_of_the_next_state_as_it_stands() -> None:
    read = Table(4, 4, VOCAB)
    loss = _make(ActionConsistency, others=0.0).loss(read, _batch())
    terms = []
    for r in range(4):
        targets = [read.values[r, t + 1].max().item() for t in range(LAST[r] - 1)] + [LABELS[r]]
        taken = [read.of(r, t, ROWS[r][t + 1]) for t in range(LAST[r])]
        terms.append([(q - y) ** 2 for q, y in zip(taken, targets, strict=True)])
    assert loss.item() == pytest.approx(_growing(terms), rel=1e-5)
    loss.backward()
    assert read.values.grad is not None
    moved = {tuple(where) for where in read.values.grad.nonzero().tolist()}
    assert moved == {(r, t, ROWS[r][t + 1]) for r in range(4) for t in range(LAST[r])}


def test_an_autoregressive_reward_model_compares_log_probabilities() -> None:
    read, batch = Table(4, 4, VOCAB), replace(_batch(), labels=None)
    loss = _make(Autoregressive, beta=0.5).loss(read, batch)
    logs = read.values.detach().log_softmax(-1)
    # Of what a pair shares nothing counts: 5, 6 of the first, 5, 9 of the second.
    sums = [sum(float(logs[r, t, ROWS[r][t + 1]]) for t in range(1, LAST[r])) for r in range(4)]
    expected = np.mean([softplus(-0.5 * (sums[i] - sums[i + 2])) for i in range(2)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    low, full = parse_signal("vocabulary"), parse_signal("vocabulary:full")
    assert _make(Autoregressive).unused_parameters(low) == ("base", "inserted", "bias")
    assert _make(Autoregressive).unused_parameters(full) == ()


def test_distillation_follows_its_teacher_and_pulls_the_rest_to_zero(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, batch = Table(4, 4, VOCAB), _batch()
    with torch.no_grad():
        GraftTrainable(folder, small_recipe(tmp_path))  # the folder loads
    target = prefix_values(folder, "reward", batch)
    assert target.shape == (4, 4) and torch.equal(target, torch.zeros(4, 4)), "an untrained signal"
    target = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(
        "otter_cli.training.objectives.action_values.prefix_values", lambda *_: target
    )
    terms = [
        [(read.of(r, t, ROWS[r][t + 1]) - float(target[r, t + 1])) ** 2 for t in range(LAST[r])]
        for r in range(4)
    ]
    objective = _make(Distillation, teacher=str(folder), others=0.0)
    assert objective.loss(read, batch).item() == pytest.approx(_growing(terms), rel=1e-5)

    monkeypatch.setattr(torch, "rand", lambda n, device: torch.zeros(n))
    loss = _make(Distillation, teacher=str(folder), others=0.5).loss(read, batch).item()
    others = [
        np.mean([read.of(r, 0, v) ** 2 for v in range(VOCAB) if v != ROWS[r][1]]) for r in range(4)
    ]
    assert loss == pytest.approx(_growing(terms) + 0.5 * np.mean(others), rel=1e-5)


def test_a_teacher_without_one_value_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = small_graft(tiny_llama, tmp_path / "other", "toxicity")
    with pytest.raises(OtterError, match="has no signal 'reward' of one value to teach with"):
        prefix_values(folder, "reward", _batch())


def test_a_text_of_one_token_has_no_action(tmp_path: Path, tiny_tokenizer: Any) -> None:
    objective = _make(ActionValues, eos=False)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abc", "q": 1}\n{"text": "b", "q": 0}\n')
    rows = objective.read_rows(objective.train, path, parse_signal("q=action-reward"))
    if min(objective.encode(rows[:1] * 2, tiny_tokenizer, 16).lengths) == 4:
        assert len(objective.encode(rows, tiny_tokenizer, 16).lengths) == 2, "BOS comes before it"
    else:
        with pytest.raises(OtterError, match="text 2 is a single token"):
            objective.encode(rows, tiny_tokenizer, 16)


@pytest.mark.parametrize(
    ("section", "figure"),
    [
        ({"objective": "action-values", "train": {"labels": ["toxicity"]}}, "correlation"),
        ({"objective": "action-consistency", "train": {"labels": ["toxicity"]}}, "correlation"),
        ({"objective": "autoregressive", "train": {}}, "loss"),
        ({"objective": "distillation", "train": {}}, "correlation"),
    ],
    ids=lambda value: value["objective"] if isinstance(value, dict) else "",
)
def test_action_values_learn(
    tiny_llama: Path, folder: Path, tmp_path: Path, section: dict[str, Any], figure: str
) -> None:
    from otter_cli.training.run import train

    name = section["objective"]
    file = "pairs.jsonl" if name == "autoregressive" else "labelled.jsonl"
    section = {**section, "held_out": 0.25, "train": {**section["train"], "path": file}}
    if name == "distillation":
        train(folder, small_recipe(tmp_path, steps=20))
        section["teacher"] = str(folder)
    graft = small_graft(tiny_llama, tmp_path / "q", "q=action-reward:4")
    recipe = small_recipe(tmp_path, {"q": section}, steps=30, learning_rate=0.01)
    found = train(graft, recipe).signals["q"]
    if figure == "loss":
        lines = (graft / "training" / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"]["q"] for line in lines[:30]]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    else:
        assert found[figure].mean > 0.6, found
