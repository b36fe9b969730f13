"""Starting is cheap: what `otter --help` and the light verbs import, and how long it takes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.grafts import random_graft

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


# Beyond what transformers itself imports to generate a token.
OF_THE_COMMAND_LINE = {
    "otter_cli", "typer", "rich", "pydantic", "pydantic_core", "annotated_types", "annotated_doc",
    "typing_inspection", "shellingham",
}  # fmt: skip
_STOCK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=1)
print("\\n" + json.dumps(sorted(sys.modules)))
"""


@pytest.mark.slow
def test_generating_imports_little_beyond_what_transformers_does(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=1, ffn=16)
    stock = subprocess.run(
        [sys.executable, "-c", _STOCK, str(folder)], capture_output=True, text=True, check=True
    )
    theirs = {module.partition(".")[0] for module in json.loads(stock.stdout.splitlines()[-1])}
    modules = modules_after("generate", str(folder), "ab", "--max-new-tokens", "1", "--raw")
    ours = {module.partition(".")[0] for module in modules}
    beyond = ours - theirs - set(sys.stdlib_module_names) - OF_THE_COMMAND_LINE
    assert not {name for name in beyond if not name.startswith("_")}
    parts = {module.split(".")[1] for module in modules if module.startswith("otter_cli.")}
    assert not parts & {"training", "verification", "serving", "teaching", "demo"}


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
