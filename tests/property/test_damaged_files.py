"""Spoilt records, configurations, tokenizers and proofs are refused in our words, at once."""

from pathlib import Path

import pytest

from tests.property.damaged_files_count import FILES, spoilt_records, write_graft

COUNT = 600


@pytest.mark.timeout(300)
def test_spoilt_small_files(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = spoilt_records(write_graft(tiny_llama, tmp_path / "graft"), COUNT)
    with capsys.disabled():
        for file, counts in found.items():
            print(f"\n{file}: {counts['refused']} refused, {counts['opened']} opened", end="")
    assert all(found[file]["refused"] > COUNT // 20 for file in FILES)
    assert found["otter.json"]["opened"] and found["proof.json"]["opened"]
