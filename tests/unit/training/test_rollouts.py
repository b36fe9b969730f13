"""Values by rollouts: continuations and targets against an independent computation of both."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig
from transformers import BertForSequenceClassification as Bert

from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.core.process import derive_seed
from otter_cli.data.batches import Positions
from otter_cli.data.datasets import Batch, StateDataset, pad_batch, state_key
from otter_cli.data.encoding import Encoder
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.scorers.text_scorer import check_reads_dialogues, load_labeller
from otter_cli.training.objectives.continuations import RolloutSettings, StateLabels, label_states
from otter_cli.training.objectives.labelled import value_metrics
from otter_cli.training.objectives.rollouts import Rollouts
from otter_cli.training.run import train
from tests.support.chat_tokenizers import TEMPLATES, said
from tests.support.grafts import random_graft
from tests.support.training import small_graft, small_recipe, softplus, write_data

STATES = [[1, 5, 6], [1, 9], [1, 7, 7, 7]]
DRAWING = RolloutSettings(
    base={}, labeller="", label=None, eos=False, reads="text",
    samples=3, tokens=5, temperature=0.7, seed=4,
)  # fmt: skip


def _count(texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def _roll(base: Path, store: Path, states: list[list[int]], **changed: Any) -> StateLabels:
    drawing = replace(DRAWING, **changed)
    return label_states(states, drawing, base, store, lambda: _count, "cpu")


def _records(store: Path) -> dict[str, Any]:
    (path,) = store.glob("*.jsonl")
    return {record["state"]: record for record in read_jsonlines(path)}


def _drawn_by_hand(base: Path, prefix: list[int], sample: int) -> list[int]:
    """One continuation, every token from a whole forward without a cache."""
    model = AutoModelForCausalLM.from_pretrained(base)
    key = derive_seed("rollout", DRAWING.seed, state_key(prefix), sample)
    tokens: list[int] = []
    for uniform in np.random.default_rng(key).random(DRAWING.tokens):
        with torch.no_grad():
            logits = model(torch.tensor([prefix + tokens])).logits[0, -1].double().numpy()
        shares = np.exp(logits / DRAWING.temperature - (logits / DRAWING.temperature).max())
        tokens.append(int((shares.cumsum() / shares.sum() <= uniform).sum()))
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


def test_continuations_are_draws_from_the_base(tiny_llama: Path, tmp_path: Path) -> None:
    labels = _roll(tiny_llama, tmp_path, STATES)
    tokenizer, found = AutoTokenizer.from_pretrained(tiny_llama), _records(tmp_path)
    for prefix in STATES:
        record = found[state_key(prefix)]
        for sample in range(DRAWING.samples):
            by_hand = _drawn_by_hand(tiny_llama, prefix, sample)
            assert record["tokens"][sample] == by_hand
            text = tokenizer.decode(prefix + by_hand, skip_special_tokens=True)
            assert labels[state_key(prefix)][sample] == len(text)


def test_a_state_is_the_same_whatever_comes_before_it(tiny_llama: Path, tmp_path: Path) -> None:
    _roll(tiny_llama, tmp_path / "all", STATES)
    _roll(tiny_llama, tmp_path / "alone", STATES[2:])
    alone = _records(tmp_path / "alone")
    assert alone == {key: _records(tmp_path / "all")[key] for key in alone}
    _roll(tiny_llama, tmp_path / "other", STATES, seed=5)
    assert _records(tmp_path / "other") != _records(tmp_path / "all")


def test_what_an_interruption_leaves_is_gone_on_with(tiny_llama: Path, tmp_path: Path) -> None:
    whole = _roll(tiny_llama, tmp_path / "whole", STATES)
    calls = 0

    def stops(texts: Sequence[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return _count(texts)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            label_states(STATES, DRAWING, tiny_llama, tmp_path / "cut", lambda: stops, "cpu")
        (path,) = (tmp_path / "cut").glob("*.jsonl")
        # And what a kill leaves: half a line.
        path.write_bytes(path.read_bytes() + b'{"state": "12')
        calls = 1
    assert len(_records(tmp_path / "cut")) == 1
    assert _roll(tiny_llama, tmp_path / "cut", STATES) == whole
    assert _records(tmp_path / "cut") == _records(tmp_path / "whole")

    def never() -> Any:
        raise AssertionError("a labeller is loaded, and nothing is left to do")

    assert label_states(STATES, DRAWING, tiny_llama, tmp_path / "cut", never, "cpu") == whole


def test_labels_of_another_number_of_samples_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    _roll(tiny_llama, tmp_path, STATES[:1])
    (path,) = tmp_path.glob("*.jsonl")
    record = {**next(read_jsonlines(path)), "labels": [1.0]}
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(OtterError, match="has 1 labels, not 3"):
        _roll(tiny_llama, tmp_path, STATES)


def test_places_are_of_the_text_alone(tiny_tokenizer: Any) -> None:
    encoder = Encoder(tiny_tokenizer, 32, eos=False, keep="start")
    texts = ["abcdefgh", "a", "hello there"]
    data, other = StateDataset(texts, encoder, 3, 0), StateDataset(texts[::-1], encoder, 3, 0)
    assert data.positions == other.positions[::-1]
    for ids, places, length in zip(data.ids, data.positions, data.lengths, strict=True):
        assert places == sorted(set(places)) and places[0] > 0 and places[-1] == length - 1
        assert len(places) == 3 or len(places) == len(ids) - 1
    # Texts are checked against the base before their targets are drawn.
    assert data.batch([2, 1]).labels.isnan().all()  # type: ignore[union-attr]
    targets = {state_key(p): float(len(p)) for p in data.prefixes()}
    data.set_targets(targets)
    batch = data.batch([2, 1])
    assert batch.state_positions is not None and batch.labels is not None
    assert batch.state_positions[1].tolist() == [1, -1, -1]
    chosen = batch.state_positions >= 0
    assert torch.equal(batch.labels[chosen], batch.state_positions[chosen] + 1.0)


@pytest.mark.parametrize("loss_of", ["squared", "cross-entropy"])
def test_the_loss_is_the_mean_over_texts_of_their_states(loss_of: str) -> None:
    values = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    places, labels = [[1, 3], [2, -1]], [[0.25, 1.0], [0.5, 0.0]]
    batch = replace(
        pad_batch([[1, 5, 6, 7], [1, 5, 6]], 0),
        state_positions=torch.tensor(places),
        labels=torch.tensor(labels),
    )

    def read(batch: Batch, at: Positions, tokens: torch.Tensor | None = None) -> torch.Tensor:
        return values[at]

    def term(row: int, place: int, label: float) -> float:
        score = values[row, place].item()
        entropy = label * softplus(-score) + (1 - label) * softplus(score)
        return (score - label) ** 2 if loss_of == "squared" else entropy

    objective = Rollouts.model_validate(
        {"train": {"path": "rows.jsonl"}, "labeller": ".", "loss_of": loss_of}
    )
    expected = ((term(0, 1, 0.25) + term(0, 3, 1.0)) / 2 + term(1, 2, 0.5)) / 2
    assert objective.loss(read, batch).item() == pytest.approx(expected, rel=1e-5)
    found = objective.outcomes(read, batch)
    figures = objective.metrics({name: t.numpy() for name, t in found.items()}, None)  # type: ignore[arg-type]
    got = values[[0, 0, 1], [1, 3, 2]]
    got = got if loss_of == "squared" else got.sigmoid()
    true = torch.tensor([0.25, 1.0, 0.5])
    assert figures["squared_error"].mean == pytest.approx(((got - true) ** 2).mean().item())
    both = torch.corrcoef(torch.stack([got, true]))[0, 1].item()
    assert figures["correlation"].mean == pytest.approx(both, rel=1e-4)


def test_a_new_signal_agrees_with_nothing() -> None:
    """Its values are constant, and no correlation is defined: a run that looks for the best step
    begins there."""
    figures = value_metrics(np.zeros((3, 1)), np.array([[0.0], [1.0], [0.5]]), ())
    found = figures["correlation"]
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def _section(labeller: Path, **more: Any) -> dict[str, Any]:
    train = {"path": "labelled.jsonl", "limit": 24}
    sizes = {"states": 2, "samples": 2, "tokens": 3, "held_out": 0.3, "eos": False}
    return {"objective": "rollouts", "labeller": str(labeller), "train": train, **sizes, **more}


def test_a_run_draws_its_targets_once_and_says_so(tiny_llama: Path, tmp_path: Path) -> None:
    teacher = random_graft(
        tiny_llama, tmp_path / "teacher", hidden=8, heads=2, ffn=8, signals=("reward",)
    )
    folder = small_graft(tiny_llama, tmp_path / "graft", "risk=value")
    recipe = small_recipe(tmp_path, {"risk": _section(teacher)}, steps=20, learning_rate=0.02)
    result = train(folder, recipe)
    told = result.data["risk"]["rollouts"]
    assert set(result.signals["risk"]) == {"squared_error", "correlation"}
    assert told["states"] > 20 and told["noise"] > 0
    assert Manifest.read(folder).training["risk"].data["rollouts"] == told
    (path,) = (folder / "training" / "rollouts").glob("*.jsonl")
    before = path.read_bytes()
    # A baseline is trained on the same targets, and they are not drawn again.
    head = train(folder, recipe, baseline="head", to=tmp_path / "head")
    assert head.data == result.data and path.read_bytes() == before
    records = read_jsonlines(folder / "training" / "metrics.jsonl")
    losses = [record["loss"]["risk"] for record in records if "loss" in record]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"loss_of": "cross-entropy"}, "and cross-entropy needs 0 to 1"),
        ({"tokens": 10_000}, "is longer than the base's"),
    ],
)
def test_targets_that_cannot_be(
    tiny_llama: Path, tmp_path: Path, more: dict[str, Any], what: str
) -> None:
    teacher = random_graft(
        tiny_llama, tmp_path / "teacher", scale=1, hidden=8, heads=2, ffn=8, signals=("reward",)
    )
    folder = small_graft(tiny_llama, tmp_path / "graft", "risk=value")
    with pytest.raises(OtterError, match=what):
        train(folder, small_recipe(tmp_path, {"risk": _section(teacher, **more)}))


def test_several_attributes_have_no_one_labeller(tiny_llama: Path, tmp_path: Path) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "risk=value:2")
    write_data(tmp_path)
    with pytest.raises(OtterError, match="has 2 attributes; a labeller gives one number"):
        train(folder, small_recipe(tmp_path, {"risk": _section(tiny_llama)}))


def test_a_graft_labels_texts_as_it_scores_them(tiny_llama: Path, tmp_path: Path) -> None:
    from otter_cli.model.otter import OtterForCausalLM

    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=8)
    label = load_labeller(folder, None, eos=True, device="cpu")
    model = OtterForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["abc", "hello you", ""]  # a continuation may end at once
    for text, found in zip(texts, label(texts), strict=True):
        ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            value = model(torch.tensor([ids])).signals["reward"][0, -1].item()
        assert found == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("several", [True, False])
def test_a_classifier_labels_by_name(tiny_llama: Path, tmp_path: Path, several: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    kind = "multi_label_classification" if several else "single_label_classification"
    torch.manual_seed(0)
    model = Bert(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            id2label={0: "fine", 1: "rude"},
            problem_type=kind,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    label = load_labeller(tmp_path, "rude", eos=True, device="cpu")
    inputs = tokenizer(["abc", "de"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = logits.sigmoid()[:, 1] if several else logits.softmax(-1)[:, 1]
    assert label(["abc", "de"]) == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(OtterError, match="has no label 'rud'") as caught:
        load_labeller(tmp_path, "rud", eos=True, device="cpu")
    assert "did you mean 'rude'" in caught.value.hint


def test_detoxify_labels_by_name(shared: Path) -> None:
    label = load_labeller(shared / "models" / "detoxify-mini", "toxicity", eos=True, device="cpu")
    rude, kind = label(["you stupid idiot", "thank you, that was kind"])
    assert rude > 0.9 > 0.1 > kind
    assert label(["you stupid idiot"]) == pytest.approx([rude], abs=1e-5)


@pytest.mark.parametrize("template", ["BOS at every turn", "no end of turns"])
@pytest.mark.parametrize("eos", [True, False])
def test_a_labeller_of_tokens_reads_a_dialogue_as_it_was_trained_on(
    tiny_llama: Path, tmp_path: Path, template: str, eos: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "chat_template.jinja").write_text(TEMPLATES[template])
    labeller = random_graft(base, tmp_path / "labeller", scale=0.2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prefix = tokenizer.apply_chat_template(
        said("hi"), tokenize=True, return_dict=False, add_generation_prompt=True
    )
    drawing = replace(DRAWING, chat=True, eos=eos)
    make = partial(load_labeller, labeller, "reward", eos=eos, device="cpu")
    labels = label_states([prefix], drawing, base, tmp_path / "store", make, "cpu")
    record = _records(tmp_path / "store")[state_key(prefix)]
    end = tokenizer("</s>" if template == "BOS at every turn" else ";", add_special_tokens=False)
    model = OtterForCausalLM.from_pretrained(labeller)
    for label, more in zip(labels[state_key(prefix)], record["tokens"], strict=True):
        ids = [*prefix, *more, *(end["input_ids"] if eos else [])]
        with torch.no_grad():
            value = model(torch.tensor([ids])).signals["reward"][0, -1].item()
        assert label == pytest.approx(value, abs=1e-5)


def test_a_labeller_of_another_vocabulary_reads_no_dialogues(
    tiny_llama: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    graft = random_graft(tiny_llama, tmp_path / "graft")
    labeller = random_graft(other, tmp_path / "labeller")
    check_reads_dialogues(labeller, graft)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(labeller)
    with pytest.raises(OtterError, match="has another vocabulary than the base"):
        check_reads_dialogues(labeller, graft)


def test_rollouts_of_messages_are_known_as_dialogues(tiny_llama: Path, tmp_path: Path) -> None:
    """Also where the recipe does not say `chat`: the column says it."""
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "chat_template.jinja").write_text(TEMPLATES["BOS at every turn"])
    labeller = random_graft(base, tmp_path / "labeller", scale=0.2)
    graft = random_graft(base, tmp_path / "graft")
    rows = [{"messages": said("hi", f"answer {i}")} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {
        "objective": "rollouts", "train": {"path": "rows.jsonl"}, "labeller": str(labeller),
        "states": 1, "samples": 2, "tokens": 3,
    }  # fmt: skip
    recipe = small_recipe(tmp_path, {"reward": section}, steps=1)
    train(graft, recipe)
    (stored,) = (graft / "training" / "rollouts").glob("*.json")
    assert json.loads(stored.read_text())["chat"] is True
