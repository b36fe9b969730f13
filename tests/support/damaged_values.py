"""Configuration files of a checkpoint with one value replaced by a value of another type."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WRONG = (7, "x", ["x"], None, {"x": 1}, 10**30)
# The files that transformers writes, and those of older folders.
MORE: dict[str, dict[str, Any]] = {
    "config.json": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "tokenizer_config.json": {
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"
    },
    "special_tokens_map.json": {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "additional_special_tokens": ["<pad>"],
    },
}
FILES = (*MORE, "generation_config.json", "tokenizer.json")

Damage = tuple[str, tuple[Any, ...], Any]


def damages(folder: Path) -> Iterator[Damage]:
    """The file, the path of the key, and the new value."""
    for name in FILES:
        for path in _paths(sound(folder, name)):
            for value in WRONG:
                yield name, path, value


def sound(folder: Path, name: str) -> Any:
    path = folder / name
    return {**(json.loads(path.read_text()) if path.is_file() else {}), **MORE.get(name, {})}


def damage(folder: Path, name: str, path: tuple[Any, ...], value: Any) -> None:
    """Replaces the file, since the files of a graft may be links to those of its base."""
    content = copy.deepcopy(sound(folder, name))
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(json.dumps(content))


def _paths(value: Any, before: tuple[Any, ...] = (), depth: int = 0) -> Iterator[tuple[Any, ...]]:
    """All keys up to three levels deep, but only the first few of a long list or vocabulary."""
    if isinstance(value, dict) and depth < 3:
        for key in list(value)[: None if depth < 1 else 6]:
            yield (*before, key)
            yield from _paths(value[key], (*before, key), depth + 1)
    elif isinstance(value, list) and value and depth < 3:
        yield (*before, 0)
        yield from _paths(value[0], (*before, 0), depth + 1)
