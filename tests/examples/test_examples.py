"""The scripts in examples/ run on a tiny base."""

import runpy
from pathlib import Path

import pytest

from tests.support.grafts import chat_base, random_graft

ARGUMENTS = {
    "score_text.py": ["hello"],
    "guided_chat.py": ["reward", "5", "hello"],
    "forward_pass.py": ["hello"],
}


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = chat_base(tiny_llama, tmp_path_factory.mktemp("examples") / "base")
    return random_graft(base, base.parent / "graft", hidden=8, heads=2, ffn=16)


def test_every_example_is_run_here(repository: Path) -> None:
    assert {path.name for path in (repository / "examples").glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("script", ARGUMENTS)
def test_an_example_runs(
    repository: Path,
    folder: Path,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = repository / "examples" / script
    monkeypatch.setattr("sys.argv", [str(path), str(folder), *ARGUMENTS[script]])
    runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr().out
    assert "reward" in shown
    if script == "forward_pass.py":
        assert "equal to the base's: True" in shown
