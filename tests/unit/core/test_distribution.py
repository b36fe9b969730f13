"""The package's name and extras stand in one place, and errors name the line to type."""

import re
import tomllib
from pathlib import Path

import pytest

from otter_cli.core.distribution import (
    DISTRIBUTION,
    EXTRAS,
    install_command,
    install_line,
    missing_extra,
)

# Files that may say `pip install`: the one place, and an upgrade of torch, which is no extra.
MAY_SAY_INSTALL = {"core/distribution.py", "training/sharding.py"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_the_constant_is_the_name_in_pyproject(project: dict) -> None:
    assert project["name"] == DISTRIBUTION


def test_every_extra_is_declared_and_the_trackers_have_one_name(project: dict) -> None:
    declared = project["optional-dependencies"]
    assert set(EXTRAS) <= set(declared)
    for tracker in ("tensorboard", "trackio", "wandb"):
        assert set(declared[tracker]) <= set(declared["trackers"])


def test_what_is_missing_comes_with_the_line_to_type() -> None:
    error = missing_extra("otter serve", "fastapi", "serve", instead="or use the Python API")
    assert error.what == (
        "otter serve needs the package fastapi, which is not installed; "
        "it comes with the extra 'serve'"
    )
    assert error.hint == "pip install 'otter-lm[serve]'; or use the Python API"
    with pytest.raises(KeyError):
        install_command("no-such-extra")


def test_packages_that_an_extra_brings_are_installed_by_the_extra() -> None:
    assert install_line(["torchao"]) == "pip install 'otter-lm[quantised]'"
    assert install_line(["hqq", "torchao"]) == "pip install hqq torchao"


def test_no_other_file_spells_the_name_or_an_installation(repository: Path) -> None:
    package = repository / "otter_cli"
    spelled = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"pip install|[\"'\[]otter-lm", path.read_text())
    }
    assert spelled <= MAY_SAY_INSTALL
