"""The demo on a real model, here on the tiny base: every step, its report, and going on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.demo import BASE, sentiment_demo
from otter_cli.demo.sentiment_demo import (
    METHODS,
    TEST_SUBJECTS,
    DemoScale,
    held_out_prompts,
    training_prompts,
)
from otter_cli.demo.sentiment_lexicons import afinn_positive, vader
from tests.conftest import Otter, TinyCheckpoint

SMALL = DemoScale(
    prompts=12, samples=3, tokens=8, steps=4, batch=4, test_prompts=3, new_tokens=6, strength=5.0
)


def vowels(text: str) -> float:
    """A label from 0 to 1 that differs between texts of any kind."""
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


@pytest.mark.slow
def test_the_whole_job_and_again(
    otter_here: Otter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentiment_demo, "FULL_SCALE", SMALL)
    # VADER knows none of the words that the tiny base writes.
    monkeypatch.setattr(sentiment_demo, "LABELLER", f"python:{__name__}:vowels")
    folder = tmp_path / "demo"
    command = ("demo", folder, "--model", BASE, "--json")
    first = otter_here(*command)
    assert first.returncode == 0, first.stderr
    data = json.loads(first.stdout)
    assert data["verify"]["verdict"].startswith("exact")
    assert set(data["bench"]["methods"]) == set(METHODS)
    assert f"step 1 of {len(sentiment_demo.STEPS)}" in first.stderr
    assert "going on after" not in first.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index("Side by side") < page.index("Guided by a reward")
    assert page.count('class="tokens"') == len(METHODS) * SMALL.test_prompts
    assert "https://" not in page

    samples = (folder / "compare" / "samples.jsonl").read_bytes()
    again = json.loads(otter_here(*command).stdout)
    assert (folder / "compare" / "samples.jsonl").read_bytes() == samples
    assert _figures(again) == _figures(data)


def _figures(data: dict[str, Any]) -> Any:
    return {name: method["metrics"] for name, method in data["bench"]["methods"].items()}


def test_a_model_that_is_not_there_says_how_to_get_it(otter_here: Otter, tmp_path: Path) -> None:
    shown = otter_here("demo", tmp_path / "demo", "--model", tmp_path / "nowhere")
    assert shown.returncode == 2 and "leave --model out" in shown.stderr
    assert not (tmp_path / "demo").exists()


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    record = tmp_path / "demo.json"
    for _ in range(2):
        sentiment_demo._check_settings(record, {"seed": 0, **asdict(sentiment_demo.QUICK_SCALE)})
    for seed, scale, words in (
        (1, sentiment_demo.QUICK_SCALE, "seed"),
        (0, sentiment_demo.FULL_SCALE, "prompts"),
    ):
        with pytest.raises(OtterError, match=words):
            sentiment_demo._check_settings(record, {"seed": seed, **asdict(scale)})


def test_a_run_of_another_base_is_not_continued(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    out = tmp_path / "grafted"
    base, other = (tiny_checkpoint("llama", tied=tied) for tied in (False, True))
    assert sentiment_demo._graft(base, out) == sentiment_demo._graft(base, out)
    with pytest.raises(OtterError, match="another base") as error:
        sentiment_demo._graft(other, out)
    assert "--model" in str(error.value.hint)


@pytest.mark.parametrize("option", [("--quick",), ("--model", "x")])
def test_options_that_the_tiny_demo_has_no_use_for(
    otter_here: Otter, tmp_path: Path, option: tuple[str, ...]
) -> None:
    shown = otter_here("demo", tmp_path / "demo", "--tiny", *option)
    assert shown.returncode == 2 and f"{option[0]} does not go with" in shown.stderr
    assert not (tmp_path / "demo").exists()


def test_no_test_subject_is_trained_on() -> None:
    for subject in TEST_SUBJECTS:
        assert not any(subject in prompt for prompt in training_prompts())
    assert len(set(held_out_prompts())) == len(held_out_prompts())


def test_both_lexicons_tell_praise_from_complaint() -> None:
    good, bad = " was wonderful, I loved it", " was terrible, I hated it"
    assert vader(good) > 0.5 > vader(bad)
    assert (afinn_positive("", good), afinn_positive("", bad)) == (1.0, 0.0)
