"""States that are damaged, or of another run: the file is named, and nothing trains on the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from otter_cli.checkpoint.safetensors_reader import read_header
from otter_cli.core.errors import OtterError
from otter_cli.training.run import train
from otter_cli.training.state import StateFolder
from tests.support.training import small_recipe

Edit = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def _value(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.startswith("value/") and tensors[name].ndim == 2)


def _without_value(tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
    del tensors[_value(tensors)]


def _of_another_shape(tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
    tensors[_value(tensors)] = torch.zeros(1, 1)


def _of_another_run(tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
    tensors["value/another"] = torch.zeros(1)


def _note(key: str, value: Any) -> Edit:
    def edit(tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
        notes.pop(key) if value is None else notes.update({key: value})

    return edit


EDITS: dict[str, Edit] = {
    "a missing value": _without_value,
    "a value of another shape": _of_another_shape,
    "a value of no parameter": _of_another_run,
    **{f"no {key}": _note(key, None) for key in ("identity", "guard", "choice", "seconds")},
    "an identity of text": _note("identity", "x"),
    "a guard that is a list": _note("guard", [1]),
    "seconds of text": _note("seconds", "x"),
}


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from tests.support.training import small_graft

    root = tmp_path_factory.mktemp("states")
    folder, recipe = small_graft(tiny_llama, root / "graft"), small_recipe(root)
    train(folder, recipe)
    return folder, recipe


@pytest.fixture
def state(trained: tuple[Path, Any]) -> Any:
    """The newest state of a run, given back afterwards."""
    newest = StateFolder(trained[0]).newest()
    assert newest is not None
    sound = newest.read_bytes()
    yield newest
    newest.unlink()
    newest.write_bytes(sound)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_is_missing_or_of_another_kind(
    trained: tuple[Path, Any], state: Path, edit: Edit
) -> None:
    tensors, notes = load_file(state), json.loads(read_header(state).metadata["notes"])
    edit(tensors, notes)
    save_file(tensors, state, {"notes": json.dumps(notes)})
    _refused(trained, state)


@pytest.mark.parametrize("content", [b"", b"half", None], ids=["empty", "garbage", "cut off"])
def test_a_file_that_is_no_state(
    trained: tuple[Path, Any], state: Path, content: bytes | None
) -> None:
    state.write_bytes(state.read_bytes()[:-9] if content is None else content)
    _refused(trained, state)


def test_a_state_without_notes(trained: tuple[Path, Any], state: Path) -> None:
    save_file(load_file(state), state)
    _refused(trained, state)


def _refused(trained: tuple[Path, Any], state: Path) -> None:
    with pytest.raises(OtterError) as caught:
        train(*trained, resume=True)
    assert state.name in caught.value.what and caught.value.hint
