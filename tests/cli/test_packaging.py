"""What travels in the wheel: a checkout finds its recipes at the top level, an install does not."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The unpacked wheel, as `pip install` would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=repository,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_an_installed_otter_finds_the_same_recipes(installed: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "otter_cli", "recipes", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    found = {recipe["name"] for recipe in json.loads(done.stdout)["recipes"]}
    root = repository / "recipes"
    assert found == {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml")}


def test_the_wheel_holds_the_package_and_nothing_else(installed: Path, repository: Path) -> None:
    top = {path.name for path in installed.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"otter_cli"}
    package = repository / "otter_cli"
    templates = [*package.glob("reports/templates/*")]
    assert {path.name for path in templates} == {"page.html", "style.css"}
    page = {path.name for path in package.glob("serving/page/*")}
    assert page == {"page.html", "page.css", "page.js", "icon.svg"}
    shipped = ["demo/base/*", "demo/*.yaml", "accel/stream.cpp", "accel/numbers.h"]
    shipped.append("serving/page/*")
    for data in [*templates, *(path for pattern in shipped for path in package.glob(pattern))]:
        assert (installed / data.relative_to(repository)).read_bytes() == data.read_bytes()
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    assert size < 5_000_000
