"""Libraries run what a folder brings, or unpickle it, by default or on a piped "y". So the source
itself is searched: their loaders are called in few places, with consent written out."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

LOADER = "model/load.py"
# From a GGUF file, with checks of their own.
IMPORTS = {"checkpoint/gguf/tensors.py", "checkpoint/gguf/convert.py"}
# The load of a base on the meta device, which reads no weight.
REHEARSAL = "graft/base_check.py"
# Ours, and strict by itself.
OURS = {"OtterForCausalLM", "cls"}
# peft's take no such argument: they read a configuration and tensors.
NO_CODE = {"PeftConfig"}


class Call(NamedTuple):
    file: str
    line: int
    owner: str
    name: str
    keywords: dict[str, ast.expr]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.owner}.{self.name}"


def calls_in(root: Path) -> Iterator[Call]:
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            keywords = {k.arg: k.value for k in node.keywords if k.arg}
            file = path.relative_to(root).as_posix()
            if isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                yield Call(file, node.lineno, owner, node.func.attr, keywords)
            elif isinstance(node.func, ast.Name):
                yield Call(file, node.lineno, "", node.func.id, keywords)


@pytest.fixture(scope="module")
def calls(repository: Path) -> list[Call]:
    return list(calls_in(repository / "otter_cli"))


def loads(call: Call) -> bool:
    return call.name == "from_pretrained" and call.owner not in OURS


def test_one_module_and_the_import_of_gguf_call_from_pretrained(calls: list[Call]) -> None:
    assert {call.file for call in calls if loads(call)} == {LOADER, REHEARSAL, *IMPORTS}


def test_every_loader_says_whether_code_is_run(calls: list[Call]) -> None:
    """`from_config` too: a configuration read from a folder keeps its `auto_map`."""
    silent = [
        str(call)
        for call in calls
        if (loads(call) and call.owner not in NO_CODE) or call.name == "from_config"
        if "trust_remote_code" not in call.keywords
    ]
    assert silent == []
    assert sum(loads(call) for call in calls) >= 4


def test_consent_comes_from_a_variable_of_two_functions_alone(calls: list[Call]) -> None:
    """`load_strictly` hands on what `verify --trust-remote-code` said; all others say False."""
    consents = [
        (call.file, ast.unparse(value))
        for call in calls
        for name, value in call.keywords.items()
        if name == "trust_remote_code" and ast.unparse(value) != "False"
    ]
    assert sorted(consents) == [
        (LOADER, "trust_remote_code"),
        ("verification/case_runner.py", "trust"),
    ]


def test_one_module_unpickles_and_says_what(calls: list[Call]) -> None:
    unpicklers = {"load", "loads", "Unpickler", "load_state_dict_from_url", "read_pickle"}
    modules = {"torch", "pickle", "joblib", "dill", "cloudpickle", "np", "numpy", "torch.hub", "pd"}
    unpickling = [call for call in calls if call.owner in modules and call.name in unpicklers]
    assert {(call.file, f"{call.owner}.{call.name}") for call in unpickling} == {
        ("scorers/detoxify.py", "torch.load")
    }
    assert all("weights_only" in call.keywords for call in unpickling)
    assert not [str(call) for call in calls if "allow_pickle" in call.keywords]
    # Its constructor unpickles.
    assert not [str(call) for call in calls if call.name == "Detoxify"]


def test_code_is_made_of_text_in_one_place(calls: list[Call]) -> None:
    """The wide layout's modelling file, which is the package's own."""
    made = {call.file for call in calls if not call.owner and call.name in ("exec", "eval")}
    assert made == {"model/wide.py"}
