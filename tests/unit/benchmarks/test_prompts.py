"""Prompts as every method gets them."""

from pathlib import Path

import pytest

from otter_cli.benchmarks.prompts import PromptFile, load_prompts
from otter_cli.core.errors import OtterError
from tests.support.contestants import Contestants
from tests.unit.benchmarks.runs import Pair


def test_prompts_that_leave_no_room_are_cut_from_the_left_and_counted(
    contestants: Contestants, grafts: Pair, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("x" * 300 + "tail\nshort\n")
    prompts, record = load_prompts(
        PromptFile(tmp_path / "long.txt"), grafts[0].tokenizer, positions=128, new_tokens=20
    )
    assert record.truncated == 1 and "1 of 2 prompts are cut" in capfd.readouterr().err
    long, short = prompts
    assert len(long.tokens) == 107 and grafts[0].tokenizer.decode(long.tokens).endswith("xtail")
    assert (long.name, short.name) == ("1", "2")
    with pytest.raises(OtterError, match="no room for a prompt"):
        load_prompts(
            PromptFile(contestants.prompts), grafts[0].tokenizer, positions=128, new_tokens=126
        )
