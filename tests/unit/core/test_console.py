from collections.abc import Iterator

import pytest

from otter_cli.core import console


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    yield
    console.set_quiet(False)


def test_talk_goes_to_stderr_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("wrote [bold]x[/bold] " + "long " * 40 + "line")
    console.warn("untrained")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "wrote [bold]x[/bold] " + "long " * 40 + "line",
        "warning: untrained",
    ]


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(True)
    console.say("nothing")
    console.warn("something")
    with console.progress(10, "hashing") as advance:
        advance(10)
    assert capsys.readouterr().err == "warning: something\n"


def test_short_work_leaves_no_trace_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(10, "hashing") as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress(100, "hashing") as advance:
        for _ in range(4):
            advance(20)
    assert capsys.readouterr().err.splitlines() == [
        "hashing: 40 %, 30.0 s left",
        "hashing: 80 %, 10.0 s left",
    ]


def test_a_note_stands_beside_the_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from rich.console import Console

    clock = iter([0.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress(100, "training", note=lambda: "loss 0.500") as advance:
        advance(50)
    assert capsys.readouterr().err == "training: 50 %, 20.0 s left; loss 0.500\n"
    monkeypatch.undo()
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "console", lambda: screen)
    with console.progress(4, "training", note=lambda: "loss 0.500") as advance:
        advance(4)
    assert "loss 0.500" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_work_of_unknown_size_has_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(0, "hashing") as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "console", lambda: screen)
    with console.progress(4, "hashing") as advance:
        advance(4)
    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "hashing" in drawn and "100%" in drawn
