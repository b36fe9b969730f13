"""Which of two answers is better: formats, sections, ties, and judges that are asked fairly."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from otter_cli.benchmarks.tasks.pairs import PairsResult, judge_pairs
from otter_cli.core.errors import OtterError
from otter_cli.data.pairs import read_judged_pairs
from otter_cli.scorers.response_models import SignalScorer
from otter_cli.scorers.scorer import RuleScorer
from tests.conftest import Otter
from tests.support.benchmark_models import BenchmarkModels
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, said

LETTERS = RuleScorer("letters", lambda _, text: float(text.count("a")), digest="1")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as RewardBench has them: two win, one loses, one ties."""
    rows = [
        ("alpacaeval-easy", "aaa", "b"),
        ("hep-python", "b", "aa"),
        ("hep-rust", "ab", "ba"),
        ("my-own", "a", "bb"),
    ]
    path = tmp_path_factory.mktemp("pairs") / "bench.jsonl"
    lines = [
        {"prompt": "who?", "chosen": good, "rejected": bad, "subset": subset, "id": i}
        for i, (subset, good, bad) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_sections_are_reward_bench_s_and_a_tie_is_half_a_hit(bench: Path, grafts) -> None:
    result, records = judge_pairs(bench, grafts[0], {"rule": LETTERS})
    found = {
        name: (judged.accuracy.mean, judged.ties.mean, judged.accuracy.n)
        for name, judged in result.figures["rule"].items()
    }
    assert found == {
        "Chat": (1.0, 0.0, 1),
        "Reasoning": (0.25, 0.5, 2),
        "my-own": (1.0, 0.0, 1),
        "all": (2.5 / 4, 0.25, 4),
    }
    assert records[2] == {"pair": "3", "section": "Reasoning", "scores": {"rule": [1.0, 1.0]}}


def test_dialogues_of_hh_are_cut_where_they_part(tmp_path: Path) -> None:
    shared = "\n\nHuman: hi\n\nAssistant:"
    (tmp_path / "hh.jsonl").write_text(
        json.dumps({"chosen": shared + " hello", "rejected": shared + " go away"}) + "\n"
    )
    (pair,) = read_judged_pairs(tmp_path / "hh.jsonl").pairs
    assert (pair.prompt, pair.chosen, pair.rejected) == (shared, " hello", " go away")
    assert pair.section == "all"


def test_each_judge_reads_the_text_that_transformers_would(
    otter_here: Otter, contestants: BenchmarkModels, bench: Path, tmp_path: Path
) -> None:
    ran = otter_here(
        "bench", "preference", contestants.graft, "--pairs", bench, "--task-head", contestants.head,
        "--reward-model", contestants.reward_model, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    out = json.loads(ran.stdout)
    assert list(out["figures"]) == ["insertion", "task head", "reward model"]
    assert PairsResult.read(tmp_path / "run").figures["insertion"]["all"].accuracy.n == 4
    model = AutoModelForSequenceClassification.from_pretrained(contestants.reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(contestants.reward_model)
    ids = [*tokenizer("who?aaa").input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.item()
    first = json.loads((tmp_path / "run" / "scores.jsonl").read_text().splitlines()[0])
    assert first["scores"]["reward model"][0] == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_without_prompts_or_pairs_says_what_it_needs(
    otter_here: Otter, contestants: BenchmarkModels
) -> None:
    ran = otter_here("bench", "preference", contestants.graft)
    assert ran.returncode == 2 and "--prompts" in ran.stderr and "--pairs" in ran.stderr


def test_identical_pairs_are_left_out_and_counted(
    tmp_path: Path, grafts, capfd: pytest.CaptureFixture[str]
) -> None:
    """A window of 128 tokens cuts what would tell some of them apart; two texts are equal."""
    long = "word " * 60
    rows = [
        {"prompt": "who?", "chosen": "aaa", "rejected": "b", "made_by": "me"},
        {"prompt": "who?", "chosen": "a" + long, "rejected": "bb" + long},
        {"prompt": "who?", "chosen": "ab", "rejected": "b"},
        {"prompt": "who?", "chosen": "same", "rejected": "same"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, records = judge_pairs(file, grafts[0], {"rule": LETTERS})
    assert result.settings.identical == 2 and result.settings.ignored == ["made_by"]
    assert [record["pair"] for record in records] == ["1", "3"]
    judged = result.figures["rule"]["all"]
    assert (judged.accuracy.mean, judged.accuracy.n, judged.ties.mean) == (1.0, 2, 0.0)
    told = " ".join(capfd.readouterr().err.split())
    assert "2 of 4 pairs are identical" in told and "columns that are not read: 'made_by'" in told
    file.write_text("".join(json.dumps(row) + "\n" for row in [rows[1], rows[3]]))
    with pytest.raises(OtterError, match="2 of 2 pairs are identical"):
        judge_pairs(file, grafts[0], {"rule": LETTERS})


def test_a_limit_is_drawn_across_sections_and_is_part_of_the_key(tmp_path: Path, grafts) -> None:
    subsets = ["alpacaeval-easy"] * 12 + ["hep-rust"] * 6
    rows = [{"prompt": "q", "chosen": f"a{i}", "rejected": "b", "subset": s}
            for i, s in enumerate(subsets)]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [
        judge_pairs(file, grafts[0], {"rule": LETTERS}, limit=limit, limit_seed=seed)
        for limit, seed in ((6, 0), (6, 0), (6, 1), (None, 0))
    ]
    result, records = runs[0]
    assert result.settings.drawn is not None and result.settings.drawn.of == 18
    assert [int(record["pair"]) for record in records] == result.settings.drawn.lines
    assert [record["section"] for record in records] == ["Chat"] * 4 + ["Reasoning"] * 2
    keys = [result.key for result, _ in runs]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert runs[3][0].settings.drawn is None


@pytest.mark.parametrize("form", ["prompt and answers", "whole dialogues", "messages as given"])
def test_pairs_of_dialogues_are_judged_by_the_template(
    form: str, grafts: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES["BOS at every turn"], adds_bos=False)
    graft = replace(grafts[0], tokenizer=tokenizer)
    row: dict[str, Any] = {"chosen": said("who?", "me"), "rejected": said("who?", "not me")}
    if form == "prompt and answers":
        row = {"prompt": "who?", "chosen": "me", "rejected": row["rejected"][1:]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    judge = {"insertion": SignalScorer(graft, "reward")}
    # A list of messages can be nothing else.
    chat = form != "messages as given"
    result, (record,) = judge_pairs(tmp_path / "rows.jsonl", graft, judge, chat=chat)
    assert result.settings.template == "the chat template"
    for score, answer in zip(record["scores"]["insertion"], ["me", "not me"], strict=True):
        ids = tokenizer.apply_chat_template(said("who?", answer), tokenize=True, return_dict=False)
        with torch.no_grad():
            signal = graft.model(torch.tensor([ids])).signals["reward"][0]
        # At the end of the turn; a newline comes after it.
        assert ids[-2] == tokenizer.eos_token_id
        assert score == pytest.approx(signal[-2].item(), abs=1e-6)
