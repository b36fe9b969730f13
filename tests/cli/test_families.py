"""Families from the command line: what is listed, what an FFN-only base takes, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import Otter
from tests.support.families import CASES, FULL

DEEPSEEK = next(case for case in CASES if case.family == "deepseek_v3")


def test_the_list_is_the_table_of_tests(otter: Otter) -> None:
    listed = json.loads(otter("inspect", "--families", "--json").stdout)
    assert len(listed["full"]) >= 16
    assert listed["full"] == sorted(case.family for case in FULL)
    assert listed["ffn_only"] == sorted({c.family for c in CASES} - {c.family for c in FULL})
    assert sorted([*listed["wide"], *listed["not_wide"]]) == sorted(case.family for case in CASES)
    assert "qwen3" in listed["wide"] and "mean" in listed["not_wide"]["gpt2"]
    assert listed["refused"]["bert"]["reason"] and listed["refused"]["bert"]["instead"]


def test_an_ffn_only_base(otter: Otter, tiny_checkpoint: Any, tmp_path: Path) -> None:
    base = DEEPSEEK.write(tiny_checkpoint)
    said = otter("inspect", base)
    assert "FFN insertion only" in said.stdout and "latent" in said.stdout
    refused = otter("graft", base, tmp_path / "out", "--heads", "1")
    assert refused.returncode == 2 and not (tmp_path / "out").exists()
    assert "deepseek_v3 takes no inserted heads" in refused.stderr and "hint:" in refused.stderr
    made = otter("graft", base, tmp_path / "out", "--json")
    assert made.returncode == 0, made.stderr
    grafted = json.loads(made.stdout)
    assert grafted["insertion"]["heads"] == 0 and grafted["inserted_cache_bytes_per_token"] == 0
    assert grafted["base_cache_bytes_per_token"] is None
    assert "no growth" in otter("graft", base, tmp_path / "other").stdout


def test_an_unsupported_base_is_refused_by_name(
    otter: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "gemma3"}))
    for arguments in (("inspect", base), ("graft", base, tmp_path / "out")):
        refused = otter(*arguments)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert "family 'gemma3' is not supported: reads images" in refused.stderr
        assert "gemma3_text" in refused.stderr
    assert not (tmp_path / "out").exists()
