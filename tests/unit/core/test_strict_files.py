"""Small files are read without blocking, up to a limit, and ambiguous content is refused."""

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import parse_yaml, read_small_file, read_small_text_file
from tests.conftest import REPOSITORY


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def folder(path: Path) -> None:
    path.mkdir()


def absent(path: Path) -> None:
    pass


SPOILT = [pipe, device, sparse, folder, absent]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", SPOILT)
def test_what_is_no_plain_small_file_is_refused(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "settings.json"
    make(path)
    for read in (read_small_file, read_small_text_file):
        with pytest.raises(OtterError, match=r"settings\.json") as refused:
            read(path)
        assert refused.value.hint


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_small_file(path, limit=5) == b"12345"
    with pytest.raises(OtterError, match="over the limit of 4"):
        read_small_file(path, limit=4)
    # A file of /proc has size 0.
    assert read_small_file("/proc/self/status")
    with pytest.raises(OtterError, match="over the limit"):
        read_small_file("/proc/self/status", limit=10)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"caf\xe9")
    with pytest.raises(OtterError, match="byte 4 is not UTF-8"):
        read_small_text_file(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' occurs twice"),
        ("x: {b: 1, b: 2}", "'b' occurs twice"),
        ("a: [1", "not YAML"),
        ("a: &a [*a]", "part of itself"),
        ("a: " + "[" * 5000, "not YAML"),
        ("a: 2001-99-99", "not YAML"),
        (
            "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)),
            "far more values",
        ),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_yaml_with_two_meanings_or_no_end(text: str, what: str) -> None:
    with pytest.raises(OtterError, match=what):
        parse_yaml(text, "recipe.yaml", hint="h")


def test_yaml_that_is_fine() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: [1, null]", "f", hint="h") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": [1, None],
    }
    assert parse_yaml("<<: {a: 1}\n", "f", hint="h") == {"a": 1}
    assert parse_yaml("", "f", hint="h") is None


# Calls that read a whole file or parse text, and the only places where they are allowed.
ALLOWED = {
    ("core/strict_files.py", "yaml.safe_load"): "the reader",
    ("core/strict_files.py", "yaml.compose"): "the reader",
    ("core/strict_files.py", "json.loads"): "the reader",
    ("core/jsonlines.py", "json.loads"): "one line",
    ("core/library_errors.py", "json.loads"): "what a library refused, bounded, to name the key",
    ("core/cpu_limits.py", "read_text"): "/proc, and control groups below /sys",
    ("core/processor_share.py", "read_text"): "/proc/self/task",
    ("data/spans.py", "json.loads"): "one cell of a table",
    ("data/tables.py", "json.loads"): "one line of data",
    ("serving/vllm/middleware.py", "json.loads"): "a request in memory, and the engine's answers",
    ("core/provenance.py", "read_text"): "/proc/cpuinfo",
    ("benchmarks/overhead/measuring.py", "read_text"): "/proc/cpuinfo",
    ("accel/native_library.py", "read_text"): "the package's own source, /proc/cpuinfo",
    ("model/wide.py", "read_text"): "the package's own file",
    ("reports/html.py", "read_text"): "the package's own file",
    ("demo/train_base.py", "json.loads"): "text that the tokenizers library gave",
    ("benchmarks/lm_eval/documents.py", "json.loads"): "text that was made here",
}


def reading_calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name in ("json.load", "json.loads", "yaml.load", "yaml.safe_load"):
            found.add(name)
        elif name == "yaml.compose" or last in ("read_text", "read_bytes"):
            found.add(name if name == "yaml.compose" else last)
    return found


def test_nothing_else_in_the_package_reads_a_whole_file() -> None:
    package = REPOSITORY / "otter_cli"
    found = {
        (path.relative_to(package).as_posix(), call)
        for path in package.rglob("*.py")
        for call in reading_calls(ast.parse(path.read_text()))
    }
    assert found <= ALLOWED.keys(), f"use core/strict_files.py: {sorted(found - ALLOWED.keys())}"
