"""A fresh graft of the tiny Llama and a folder with data, for each test."""

from pathlib import Path

import pytest

from tests.support.training import small_graft


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A graft with one signal, `reward`."""
    return small_graft(tiny_llama, tmp_path / "graft")
