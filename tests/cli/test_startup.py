"""Starting is cheap: what `otter --help` and the light verbs import, and how long it takes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "numpy", "pydantic", "safetensors", "matplotlib", "rich", "yaml"}

_LIST_MODULES = """
import json, sys
from otter_cli.cli.main import main
code = main(sys.argv[1:])
assert code == 0, code
print("\\n" + json.dumps(sorted(sys.modules)))
"""


def modules_after(*arguments: str) -> list[str]:
    command = [sys.executable, "-c", _LIST_MODULES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_imports_nothing_heavy() -> None:
    modules = modules_after("--help")
    packages = {module.partition(".")[0] for module in modules}
    # typer imports the top of rich, none of its parts.
    assert packages & HEAVY <= {"rich"}
    assert not [module for module in modules if module.startswith("rich.")]
    bare = subprocess.run(
        [sys.executable, "-c", "import sys, typer, rich; print(len(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(modules) < int(bare.stdout) + 40


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "--help"], ["recipes", "--json"]])
def test_light_verbs_import_no_model_library(arguments: list[str]) -> None:
    packages = {module.partition(".")[0] for module in modules_after(*arguments)}
    assert not packages & {"torch", "transformers", "numpy", "safetensors", "matplotlib"}


def test_inspecting_a_base_imports_neither_numpy_nor_what_plans_insertions(
    tiny_llama: Path,
) -> None:
    modules = modules_after("inspect", str(tiny_llama))
    packages = {module.partition(".")[0] for module in modules}
    assert not packages & {"torch", "transformers", "numpy", "safetensors", "matplotlib"}
    assert "otter_cli.graft" not in modules


def test_pricing_a_graft_imports_no_numpy(tiny_llama: Path, tmp_path: Path) -> None:
    modules = modules_after("graft", str(tiny_llama), str(tmp_path / "out"), "--dry-run")
    packages = {module.partition(".")[0] for module in modules}
    assert not packages & {"torch", "transformers", "numpy", "safetensors", "matplotlib"}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


@pytest.mark.performance
def test_help_takes_no_more_than_twice_the_import_of_typer_and_rich() -> None:
    bare = [sys.executable, "-c", "import typer, rich"]
    help = [sys.executable, "-m", "otter_cli", "--help"]
    # In turns, and the fastest of each: what else the machine does then disturbs both alike.
    times = [(seconds(bare), seconds(help)) for _ in range(9)]
    assert min(time for _, time in times) < 2 * min(time for time, _ in times)
