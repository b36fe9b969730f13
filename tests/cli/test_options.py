"""Options of a verb that are the fields of a pydantic model."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import PositiveInt
from typer.testing import CliRunner

from otter_cli.benchmarks import options as declared
from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.options import expand_models
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig


def described(help: str, panel: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


class Run(StrictConfig):
    folder: Annotated[Path, typer.Argument(help="a folder")]
    prompts: Annotated[Path, described("a file", "Prompts")]
    top_p: Annotated[float, described("a share", "Decoding")] = 0.9
    limit: Annotated[PositiveInt | None, described("at most so many")] = None
    method: Annotated[tuple[str, ...], described("repeatable")] = ()
    everything: Annotated[bool, described("all of it", None, "--all")] = False
    end: bool = True


class Pairs(StrictConfig):
    folder: Annotated[Path, typer.Argument(help="a folder")]
    pairs: Annotated[Path, described("a file of pairs", "Prompts")]
    limit: Annotated[PositiveInt | None, described("at most so many")] = None


def command(function: Any) -> Any:
    app = verb_app()
    verb(app, example="otter try")(function)
    return app


def run(app: Any, *arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=True)
    if isinstance(done.exception, OtterError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def one(options: Run, out: Annotated[str, typer.Option("--out")] = "runs") -> Outcome:
    """One model."""
    return Outcome({"options": options.model_dump(mode="json"), "out": out}, view=str)


def several(options: Pairs | Run) -> Outcome:
    """Either model."""
    kind = type(options).__name__
    return Outcome({"kind": kind, "options": options.model_dump(mode="json")}, view=str)


def test_a_field_gives_name_type_default_help_and_panel() -> None:
    page = CliRunner().invoke(command(one), ["--help"], env={"COLUMNS": "100"}).output
    lines = [" ".join(line.strip("│ ").split()) for line in page.splitlines()]
    assert "--top-p <number> a share [default: 0.9]" in lines
    assert "* --prompts <path> a file [required]" in lines
    assert "--method <text> repeatable" in lines
    assert "--all all of it" in lines
    assert "--end" not in page
    assert page.index("Prompts ─") < page.rindex("--prompts") < page.index("Decoding ─")


def test_the_verb_gets_the_validated_model() -> None:
    given = run(command(one), "a", "--prompts", "p", "--method", "x", "--method", "y", "--all")
    assert given["out"] == "runs"
    assert given["options"] == Run(
        folder=Path("a"), prompts=Path("p"), method=("x", "y"), everything=True
    ).model_dump(mode="json")


@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_value_that_the_model_refuses_is_named_by_its_option(value: str) -> None:
    with pytest.raises(OtterError, match=f"--limit {value}: it must be greater than 0"):
        run(command(one), "a", "--prompts", "p", "--limit", value)


def test_of_a_union_the_first_model_whose_options_are_given_is_built() -> None:
    assert run(command(several), "a", "--pairs", "p")["kind"] == "Pairs"
    assert run(command(several), "a", "--pairs", "p", "--prompts", "q")["kind"] == "Pairs"
    chosen = run(command(several), "a", "--prompts", "p", "--limit", "2")
    assert chosen["kind"] == "Run" and chosen["options"]["limit"] == 2
    with pytest.raises(OtterError, match="this needs --prompts") as error:
        run(command(several), "a", "--limit", "2")
    assert error.value.hint == "or give --pairs"


def test_a_verb_without_a_model_is_left_as_it_is() -> None:
    def plain(folder: Path) -> Outcome:
        raise NotImplementedError

    assert expand_models(plain) is plain


@pytest.mark.parametrize("name", declared.OPTIONS)
def test_defaults_on_the_command_line_are_those_of_recipes(name: str) -> None:
    model = declared.OPTIONS[name]

    def function(options: Any) -> None: ...

    function.__annotations__["options"] = model
    for parameter in inspect.signature(expand_models(function)).parameters.values():
        field = model.model_fields[parameter.name]
        if field.is_required():
            assert parameter.default is inspect.Parameter.empty
        else:
            assert parameter.default == (field.default if field.default != () else None)


def test_help_of_a_benchmark_imports_no_model_library() -> None:
    code = (
        "import sys; from otter_cli.cli.main import main; main(['bench', 'detox', '--help']);"
        "assert not sys.modules.keys() & {'torch', 'transformers', 'numpy'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
