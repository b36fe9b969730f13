"""YAML that means one thing: a key given twice is refused, and so is what unfolds without end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.core.small_files import read_small_text

# Values after every alias is replaced by what it stands for; a recipe has some hundred.
_MAX_VALUES = 100_000


def read_yaml(path: str | Path, *, hint: str) -> Any:
    """What a small YAML file holds. Raises OtterError with the line of what is wrong."""
    return parse_yaml(read_small_text(path), str(path), hint=hint)


def parse_yaml(text: str, where: str, *, hint: str) -> Any:
    """What `text` holds; `where` is what the error calls it."""
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _check(node, where, hint)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise OtterError(f"{where}{line}: not YAML: {problem}", hint=hint) from error


def _check(root: Any, where: str, hint: str) -> None:
    """Depth first, each node once; `sizes` counts a node as often as it is repeated."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise OtterError(f"{where}: an alias stands for a part of itself", hint=hint)
        open_nodes.add(id(node))
        total = 1 + sum(size(inner) for inner in _inner(node, where))
        open_nodes.discard(id(node))
        if total > _MAX_VALUES:
            raise OtterError(f"{where}: far more values than a settings file has", hint=hint)
        sizes[id(node)] = total
        return total

    size(root)


def _inner(node: Any, where: str) -> Iterator[Any]:
    if node.id == "sequence":
        yield from node.value
    if node.id != "mapping":
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if key.id == "scalar" and name in seen and name != "<<":
            raise OtterError(
                f"{where}, line {key.start_mark.line + 1}: {name!a} occurs twice",
                hint="keep one of the two: only the last would count",
            )
        seen.add(name)
        yield value
