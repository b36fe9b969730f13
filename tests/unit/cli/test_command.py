"""What every verb gets from the shell around it: output, errors, exit codes."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer
from pydantic import BaseModel

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.main import main
from otter_cli.cli.verbs import VERBS, Verb
from otter_cli.core.console import say, set_quiet
from otter_cli.core.errors import CheckFailed, OtterError

Install = Callable[[Callable[..., Outcome]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a function into the table as the verb `probe`."""

    def install(function: Callable[..., Outcome]) -> None:
        module = types.ModuleType("probe_verb")
        module.app = verb_app()  # type: ignore[attr-defined]
        verb(module.app, name="probe", example="otter probe")(function)
        monkeypatch.setitem(sys.modules, "probe_verb", module)
        monkeypatch.setitem(VERBS, "probe", Verb("probe_verb", "Test", "a probe"))

    yield install
    set_quiet(False)


def talkative() -> Outcome:
    print("a library prints")
    os.write(1, b"C code writes\n")
    subprocess.run([sys.executable, "-c", "print('a child prints')"], check=True)
    return Outcome({"answer": 42}, view=lambda: "forty-two [sic]")


def test_json_is_alone_on_stdout(install: Install, capfd: pytest.CaptureFixture[str]) -> None:
    install(talkative)
    assert main(["probe", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"answer": 42}
    for line in ("a library prints", "C code writes", "a child prints"):
        assert line in err


def test_stdout_is_given_back_after_an_error_under_json(
    install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing() -> Outcome:
        print("before")
        raise OtterError("it broke")

    install(failing)
    assert main(["probe", "--json"]) == 2
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_people_see_the_view_with_its_brackets(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(lambda: Outcome({"answer": 42}, view=lambda: "forty-two [sic] " + "x" * 150))
    assert main(["probe"]) == 0
    assert capsys.readouterr().out == "forty-two [sic] " + "x" * 150 + "\n"


def test_the_view_is_not_drawn_under_json(install: Install) -> None:
    def view() -> str:
        raise AssertionError("drawn for nobody")

    install(lambda: Outcome({}, view=view))
    assert main(["probe", "--json"]) == 0


def test_json_takes_the_values_that_results_have(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass
    class Point:
        x: int

    class Model(BaseModel):
        y: tuple[int, ...] = (1, 2)

    data = {"a": np.float32(0.5), "b": Path("x") / "y", "c": Point(3), "d": Model(), "e": "Zoë"}
    install(lambda: Outcome(data, view=str))
    assert main(["probe", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"a": 0.5, "b": "x/y", "c": {"x": 3}, "d": {"y": [1, 2]}, "e": "Zoë"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_json_never_prints_what_json_lacks(
    install: Install, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    install(lambda: Outcome({"value": value}, view=str))
    assert main(["probe", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_the_exit_code_of_a_failed_check(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(lambda: Outcome({"verdict": "different"}, view=lambda: "different", exit_code=1))
    assert main(["probe"]) == 1
    assert main(["probe", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[1]) == {"verdict": "different"}


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OtterError("no base at x", hint="name a folder"), 2, "error: no base at x\nhint: name a"),
        (CheckFailed("not equal"), 1, "error: not equal\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "error: Permission denied: /x/y\n"),
        (ValueError("a\nb"), 2, "error: unexpected ValueError: a\nhint: this is a bug in otter"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_told_without_a_traceback(
    install: Install,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    def failing() -> Outcome:
        raise error

    install(failing)
    assert main(["probe"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(told)
    assert "Traceback" not in err


def test_debug_shows_the_traceback_and_the_error(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> Outcome:
        raise OtterError("it broke") from KeyError("inner")

    install(failing)
    assert main(["probe", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "KeyError: 'inner'" in err
    assert err.endswith("error: it broke\n")


def test_quiet_silences_talk(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def talking() -> Outcome:
        say("so it goes")
        return Outcome({}, view=str)

    install(talking)
    main(["probe", "--quiet"])
    quiet = capsys.readouterr().err
    main(["probe"])
    assert quiet == ""
    assert "so it goes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (["prob"], "no verb 'prob'", "did you mean `otter probe`?"),
        (["zzzzzz"], "no verb 'zzzzzz'", "`otter --help` lists the verbs"),
        (["probe", "--hiden", "3"], "no such option: --hiden", "did you mean --hidden?"),
        (["probe", "--hidden", "many"], "invalid value for '--hidden'", "`otter probe --help`"),
        (["probe", "--hidden"], "option '--hidden' requires an argument", "`otter --help`"),
        (["probe", "stray"], "got unexpected extra argument", "`otter probe --help`"),
    ],
)
def test_usage_errors_say_what_and_what_to_do(
    install: Install,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    what: str,
    hint: str,
) -> None:
    def probe(hidden: Annotated[int, typer.Option(help="width")] = 32) -> Outcome:
        return Outcome({"hidden": hidden}, view=str)

    install(probe)
    assert main(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.lower().startswith(f"error: {what}")
    assert second.startswith(f"hint: {hint}")


def test_help_keeps_square_brackets(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def probe() -> Outcome:
        """Read head([y ; v]) per token."""
        return Outcome({}, view=str)

    install(probe)
    assert main(["probe", "--help"]) == 0
    assert "Read head([y ; v]) per token." in capsys.readouterr().out
