"""Monitors on tiny grafts: scores are the models' own; what is wrong with them stops the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from otter_cli.benchmarks.methods import detectors
from otter_cli.benchmarks.options import DetectionOptions
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.runner.stored_run import read_run
from otter_cli.benchmarks.tasks.assemble import assemble_detection
from otter_cli.benchmarks.tasks.detection import (
    Detection,
    MonitoredText,
    MonitoredTexts,
    encode_texts,
    load_monitored_texts,
    scored_streams,
    texts_of_pairs,
)
from otter_cli.core.errors import OtterError
from otter_cli.data.pairs import PreferencePair
from otter_cli.decoding.results import Generation
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.scorers.load import load_graft
from otter_cli.training.baselines.readouts import PROBE_FILE, write_readout
from otter_cli.training.recipe import load_recipe
from otter_cli.training.run import train
from tests.support.benchmark_models import write_reward_model
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, said
from tests.support.grafts import random_graft
from tests.support.training import TOXICITY, small_graft, write_data, write_recipe

PAIRS = [PreferencePair(f"you are a friend {i}", f"you are a bastard {i}") for i in range(4)]


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("monitors")
    return {
        "graft": random_graft(tiny_llama, folder / "graft", scale=0.2, signals=("toxicity",)),
        "head": random_graft(tiny_llama, folder / "head", hidden=0, seed=1, signals=("toxicity",)),
        "classifier": write_reward_model(tiny_llama, folder / "classifier", seed=1),
    }


def made(folders: dict[str, Path], **options) -> Detection:
    texts = MonitoredTexts(Path("pairs.jsonl"), texts_of_pairs(PAIRS))
    asked = DetectionOptions(
        folder=folders["graft"],
        monitor=(f"head={folders['head']}",),
        classifier=folders["classifier"],
        **options,
    )
    return assemble_detection(asked, texts)


def test_every_monitor_scores_every_token_as_its_model_does(folders, tmp_path: Path) -> None:
    benchmark = made(folders)
    finished = run_benchmark(benchmark, tmp_path / "run")
    drawn = read_run(finished.folder).data
    classifier = AutoModelForSequenceClassification.from_pretrained(folders["classifier"]).eval()
    scores = scored_streams(drawn.rows["classifier"], drawn)
    for prompt, found in zip(drawn.prompts, scores.scores, strict=True):
        # The stock class reads the last token: the text up to each token is asked for by itself.
        for n in (1, len(found)):
            with torch.no_grad():
                logit = classifier(torch.tensor([prompt.tokens[:n]])).logits[0, 0]
            assert found[n - 1] == pytest.approx(logit.sigmoid().item(), abs=1e-5)
    for name in ("insertion", "head", "classifier"):
        own = scored_streams(drawn.rows[name], drawn)
        highest, offends = own.highest, own.offending
        wins = [
            (a > b) + 0.5 * (a == b) for a in highest[offends] for b in highest[~offends]
        ]  # fmt: skip
        figures = finished.result.methods[name].metrics
        assert figures["auroc"].mean == pytest.approx(np.mean(wins))
        assert figures["detected"].mean + figures["missed"].mean == pytest.approx(1)
        assert figures["on_time"].mean <= figures["detected"].mean
    assert "auroc" not in finished.result.methods["plain"].metrics
    assert len(finished.result.findings) == 3


def test_a_probe_that_was_trained_is_a_monitor(folders, tmp_path: Path) -> None:
    """Its score of a text is the gated mean over that text's tokens, here in float64 by hand."""
    graft = OtterForCausalLM.from_pretrained(folders["graft"])
    random = torch.Generator().manual_seed(0)
    width = graft.shape.layers * graft.shape.hidden
    weights = {
        name: 0.3 * torch.randn(form, generator=random)
        for name, form in {"weight": (1, width), "bias": (1,), "gate": (1, width),
                           "gate_bias": (1,)}.items()
    }  # fmt: skip
    signal = graft.signal_configs["toxicity"]
    told = {"reads": "states", "signal": signal.model_dump_json()}
    write_readout(tmp_path / "probe" / PROBE_FILE, weights, told, {})
    texts = MonitoredTexts(Path("pairs.jsonl"), texts_of_pairs(PAIRS))
    asked = DetectionOptions(folder=folders["graft"], monitor=(f"probe={tmp_path / 'probe'}",))
    finished = run_benchmark(assemble_detection(asked, texts), tmp_path / "run")
    drawn = read_run(finished.folder).data
    prompt, found = drawn.prompts[0], scored_streams(drawn.rows["probe"], drawn).scores[0]
    with torch.no_grad():
        layers = graft.base(torch.tensor([prompt.tokens]), output_hidden_states=True).hidden_states
    # The stock class gives the last state normed; all that is before it is what layers add up to.
    last: list[torch.Tensor] = []
    hook = graft.base.model.layers[-1].register_forward_hook(lambda m, i, o: last.append(o))
    with torch.no_grad():
        graft.base(torch.tensor([prompt.tokens]))
    hook.remove()
    states = [one[0].double() for one in (*layers[1:-1], last[0])]
    features = torch.cat([one / one.square().mean(-1, True).add(1e-6).sqrt() for one in states], -1)
    scores = features @ weights["weight"][0].double() + weights["bias"].double()
    gates = (features @ weights["gate"][0].double() + weights["gate_bias"].double()).sigmoid()
    for n in range(1, len(found) + 1):
        mean = (gates[:n] * scores[:n]).sum() / gates[:n].sum()
        assert found[n - 1] == pytest.approx(mean.sigmoid().item(), abs=1e-5)
    with pytest.raises(OtterError, match="'toxicity'.*kind classes"):
        detectors.probe_detector("probe", load_graft(folders["graft"], "toxicity", device="cpu"),
                           tmp_path / "probe", "reward")  # fmt: skip


def test_a_monitor_that_loses_a_token_stops_the_run(folders, tmp_path: Path) -> None:
    benchmark = made(folders)
    honest = benchmark.methods["head"].generate

    def lossy(texts, sampling) -> list[Generation]:
        found = honest(texts, sampling)
        found[0].signals["score"].pop()
        return found

    object.__setattr__(benchmark.methods["head"], "generate", lossy)
    with pytest.raises(OtterError, match="head gave .* scores for the .* tokens"):
        run_benchmark(benchmark, tmp_path / "run")


def test_a_score_that_is_no_number_stops_the_run(folders, tmp_path: Path) -> None:
    benchmark = made(folders)
    honest = benchmark.methods["head"].generate

    def lying(texts, sampling) -> list[Generation]:
        found = honest(texts, sampling)
        found[0].signals["score"][0] = float("nan")
        return found

    object.__setattr__(benchmark.methods["head"], "generate", lying)
    with pytest.raises(OtterError, match="not finite|nan"):
        run_benchmark(benchmark, tmp_path / "run")


def test_texts_of_one_kind_are_refused(folders) -> None:
    with pytest.raises(OtterError, match="all of its 1 texts offend, or none does"):
        made(folders, limit=1)


def test_few_texts_have_one_of_the_other_kind_among_them(folders) -> None:
    offending, clean = MonitoredText("bad", 3), MonitoredText("good", None)
    tokenizer = AutoTokenizer.from_pretrained(folders["graft"])

    def names(streams: list[MonitoredText], limit: int | None) -> list[str]:
        file = folders["graft"] / "texts"
        found, _ = encode_texts(MonitoredTexts(file, streams), tokenizer, positions=8, limit=limit)
        return [prompt.text for prompt in found]

    assert names([offending, offending, offending, clean, clean], 2) == ["bad", "good"]
    assert names([clean, clean, offending, clean], 2) == ["good", "bad"]
    assert names([clean, offending, offending, clean], 3) == ["good", "bad", "bad"]
    assert names([clean, offending, offending], None) == ["good", "bad", "bad"]
    with pytest.raises(OtterError, match="offend, or none does"):
        names([clean, clean, clean], 2)


def test_held_out_dialogues_are_read_by_the_graft_s_own_template(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES["BOS at every turn"], adds_bos=False)
    tokenizer.save_pretrained(tmp_path / "graft")
    rows = [{"messages": said("hi", f"{i}"), "toxicity": i % 2} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps: 1\nsignals:\n  toxicity:\n    objective: classification\n    held_out: 0.5\n"
        "    train: {path: rows.jsonl, text: messages, chat: true}\n"
    )
    texts = load_monitored_texts(DetectionOptions(folder=tmp_path / "graft", recipe=recipe))
    prompts, _ = encode_texts(texts, tokenizer, positions=99, limit=None)
    by_text = {tokenizer.apply_chat_template(r["messages"], tokenize=False): r for r in rows}
    assert len(prompts) > 5
    for prompt in prompts:
        row = by_text[prompt.text]
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
        # Without what ends the turn, as a text that is still being written.
        assert list(prompt.tokens) == whole[:-2]
        assert prompt.offends_by == row["toxicity"] * len(prompt.tokens)


def test_a_limit_draws_both_kinds_by_their_shares(folders) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["graft"])
    streams = [MonitoredText(f"clean {i}", None) for i in range(40)]
    streams += [MonitoredText(f"bad {i}", 3) for i in range(20)]
    texts = MonitoredTexts(folders["graft"] / "texts", streams)
    found, record = encode_texts(texts, tokenizer, positions=32, limit=12)
    assert [prompt.offends_by > 0 for prompt in found] == [False] * 8 + [True] * 4
    assert record.drawn is not None and record.drawn.of == 60 and record.drawn.seed == 0
    assert [prompt.text for prompt in found] == [streams[i - 1].text for i in record.drawn.lines]
    other = encode_texts(texts, tokenizer, positions=32, limit=12, limit_seed=1)[1]
    assert other.drawn is not None and other.drawn.lines != record.drawn.lines
    assert encode_texts(texts, tokenizer, positions=32, limit=None)[1].drawn is None


def test_texts_of_a_pair_that_a_cut_makes_the_same_are_left_out(folders) -> None:
    """The rejected one offends by a word that no monitor can read."""
    tokenizer = AutoTokenizer.from_pretrained(folders["graft"])
    pairs = [
        PreferencePair(f"so it goes on and on {i} good", f"so it goes on and on {i} bad")
        for i in (1, 2)
    ]
    pairs += PAIRS[:2]
    file = folders["graft"] / "pairs"
    texts = MonitoredTexts(file, texts_of_pairs(pairs))
    found, record = encode_texts(texts, tokenizer, positions=20, limit=None)
    assert [prompt.text for prompt in found] == [
        t for p in PAIRS[:2] for t in (p.chosen, p.rejected)
    ]
    assert record.count == 4
    alike = MonitoredTexts(file, texts_of_pairs(pairs[:2]))
    with pytest.raises(OtterError, match="4 of 4 texts of pairs are identical"):
        encode_texts(alike, tokenizer, positions=20, limit=None)


def test_texts_of_one_kind_are_refused_before_a_model_is_loaded(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(f'{{"text": "text {i}", "toxicity": {int(i < 5)}}}\n' for i in range(5))
    )
    section = {**TOXICITY, "train": {"path": "texts.jsonl"}, "held_out": 0.4}
    recipe = write_recipe(tmp_path, {"toxicity": section})
    with pytest.raises(OtterError, match="all of its 2 texts offend, or none does"):
        load_monitored_texts(DetectionOptions(folder=tiny_llama, recipe=recipe))


def test_rows_that_were_not_held_out_in_training_are_told(
    tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A graft of this recipe with another limit learnt from some of these texts."""
    write_data(tmp_path)
    folder = small_graft(tiny_llama, tmp_path / "graft", "toxicity")
    recipe = write_recipe(tmp_path, {"toxicity": TOXICITY}, steps=1)
    train(folder, load_recipe(recipe))
    told = "may be its training rows"
    options = DetectionOptions(folder=folder, recipe=recipe)
    assemble_detection(options, load_monitored_texts(options))
    assert told not in " ".join(capfd.readouterr().err.split())
    limited = {**TOXICITY, "train": {**TOXICITY["train"], "limit": 40}}
    other = write_recipe(tmp_path, {"toxicity": limited}, steps=1)
    options = DetectionOptions(folder=folder, recipe=other)
    assemble_detection(options, load_monitored_texts(options))
    assert told in " ".join(capfd.readouterr().err.split())


def test_pairs_of_dialogues_are_read_by_the_graft_s_own_template(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES["BOS at every turn"], adds_bos=False)
    tokenizer.save_pretrained(tmp_path / "graft")
    pairs = [(said("hi", "you friend, bye"), said("hi", "you rat, bye"))] * 2
    file = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"chosen": one, "rejected": other}) + "\n" for one, other in pairs]
    file.write_text("".join(lines))
    texts = load_monitored_texts(DetectionOptions(folder=tmp_path / "graft", pairs=file))
    prompts, _ = encode_texts(texts, tokenizer, positions=99, limit=None)
    for prompt, dialogue in zip(prompts, pairs[0] * 2, strict=True):
        whole = tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=False)
        assert list(prompt.tokens) == whole[:-2]
    clean, offending = prompts[:2]
    assert clean.offends_by == 0
    assert tokenizer.decode(offending.tokens[: offending.offends_by]).endswith("you rat,")
