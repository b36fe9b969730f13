"""Prompts as every method gets them."""

import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.benchmarks.options import PromptFile
from otter_cli.benchmarks.prompts import PromptsRecord, load_prompts
from otter_cli.benchmarks.records import RunSettings
from otter_cli.core.errors import OtterError
from tests.support.benchmark_models import BenchmarkModels
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, said
from tests.unit.benchmarks.benchmark_runs import Pair


def test_prompts_that_leave_no_room_are_cut_from_the_left_and_counted(
    contestants: BenchmarkModels, grafts: Pair, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("x" * 300 + "tail\nshort\n")
    prompts, record = load_prompts(
        PromptFile(prompts=tmp_path / "long.txt"), grafts[0].tokenizer, positions=128, new_tokens=20
    )
    assert record.truncated == 1 and "1 of 2 prompts are cut" in capfd.readouterr().err
    long, short = prompts
    assert len(long.tokens) == 107 and grafts[0].tokenizer.decode(long.tokens).endswith("xtail")
    assert (long.name, short.name) == ("1", "2")
    with pytest.raises(OtterError, match="no room for a prompt"):
        load_prompts(
            PromptFile(prompts=contestants.prompts),
            grafts[0].tokenizer,
            positions=128,
            new_tokens=126,
        )


def test_a_limit_is_recorded_and_decides_the_key_by_its_prompts_alone(
    contestants: BenchmarkModels, grafts: Pair, tmp_path: Path
) -> None:
    (tmp_path / "all.txt").write_text("".join(f"prompt {i}\n" for i in range(30)))

    def load(**limit: int) -> PromptsRecord:
        file = PromptFile(prompts=tmp_path / "all.txt", **limit)
        return load_prompts(file, grafts[0].tokenizer, positions=128, new_tokens=4)[1]

    drawn = load(limit=5)
    assert drawn.drawn is not None and drawn.count == 5 and len(drawn.drawn.lines) == 5
    assert drawn == load(limit=5) and drawn.digest != load(limit=5, limit_seed=1).digest
    assert load().drawn is None and load(limit=30) == load()

    def settings(record: PromptsRecord) -> RunSettings:
        return RunSettings(
            benchmark="detox", prompts=record, methods={}, sampling={}, samples_per_prompt=1,
            batch=1, seed=0,
        )  # fmt: skip

    older = settings(drawn.model_copy(update={"drawn": None}))
    assert settings(drawn).key == older.key and not settings(drawn).differences(older)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_of_dialogues_are_transformers_own(
    tiny_tokenizer: Any, template: str, adds_bos: bool, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES[template], adds_bos=adds_bos)
    rows = [{"turns": ["hi", "and?"]}, {"messages": said("a", "b", "c")}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, _ = load_prompts(
        PromptFile(prompts=file, chat=True), tokenizer, positions=99, new_tokens=9
    )
    for prompt, given in zip(prompts, [said("hi"), said("a", "b", "c")], strict=True):
        assert list(prompt.messages) == given
        assert list(prompt.tokens) == tokenizer.apply_chat_template(
            given, tokenize=True, return_dict=False, add_generation_prompt=True
        )
    with pytest.raises(OtterError, match="rows.jsonl, line 2: the prompt is a list of messages"):
        load_prompts(PromptFile(prompts=file), tokenizer, positions=99, new_tokens=9)
