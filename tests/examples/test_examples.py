"""The scripts in examples/ run on a tiny base."""

import runpy
from pathlib import Path

import pytest

from tests.support.grafts import chat_base, random_graft
from tests.support.live_server import live_server

ARGUMENTS = {
    "score_text.py": ["hello"],
    "guided_chat.py": ["reward", "5", "hello"],
    "forward_pass.py": ["hello"],
}
# These have tests of their own: one grafts and trains by itself, one needs a server.
OTHERS = {"distil_classifier.py", "openai_client.py"}


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = chat_base(tiny_llama, tmp_path_factory.mktemp("examples") / "base")
    return random_graft(base, base.parent / "graft", hidden=8, heads=2, ffn=16)


def test_every_example_is_run_here(repository: Path) -> None:
    scripts = {path.name for path in (repository / "examples").glob("*.py")}
    assert scripts == {*ARGUMENTS, *OTHERS}


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


def test_a_classifier_is_distilled(
    repository: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = chat_base(tiny_llama, tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("".join(f"hello {n}\n" for n in range(6)))
    path = repository / "examples/distil_classifier.py"
    monkeypatch.syspath_prepend(str(path.parent))
    few = ["--samples", "2", "--new-tokens", "6", "--set", "steps=2"]
    arguments = [path, base, tmp_path / "out", tmp_path / "prompts.txt", *few]
    monkeypatch.setattr("sys.argv", list(map(str, arguments)))
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    header = lines.index("classifier\tstream\ttext")
    assert [line.split("\t")[2] for line in lines[header + 1 :]] == [
        "I am so happy to help, thanks!",
        "Go away. I have no time.",
    ]
    # The classifier's own scores: 4 warm words of 7, and none.
    assert [line.split("\t")[0] for line in lines[header + 1 :]] == ["0.429", "0.000"]


def test_the_official_client_reads_signals_of_a_server(
    repository: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = repository / "examples/openai_client.py"
    with live_server(folder) as server:
        monkeypatch.setattr("sys.argv", [str(path), server.address, "reward", "5", "hello"])
        runpy.run_path(str(path), run_name="__main__")
        plain, guided = (
            server.otter.generate(
                [{"role": "user", "content": "hello"}], guide=guide, max_new_tokens=40
            )
            for guide in ({}, {"reward": 5.0})
        )
    shown = capsys.readouterr().out
    for text, part in (
        (plain, shown.partition("guided:")[0]),
        (guided, shown.partition("guided:")[2]),
    ):
        values = [float(line.split()[-1]) for line in part.splitlines() if " reward " in line]
        assert values == pytest.approx(text.signals["reward"].tolist(), abs=1e-3)
