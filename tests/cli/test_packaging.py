"""What travels in the wheel and in the sdist: a checkout finds its recipes at the top level, an
install does not."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml


def build(project: Path, target: str, out: Path) -> Path:
    """Builds the wheel or the sdist of a project folder, without an isolated environment."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=project,
        check=True,
        capture_output=True,
    )
    [built] = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    return build(repository, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The unpacked wheel, as `pip install` would lay it out."""
    zipfile.ZipFile(wheel).extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The unpacked sdist."""
    out = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(repository, "sdist", out)) as archive:
        archive.extractall(out, filter="data")
    [folder] = [path for path in out.iterdir() if path.is_dir()]
    return folder


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
    data = [
        path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert {"py.typed", "glossary.yaml", "stream.cpp", "page.html"} <= {path.name for path in data}
    for path in data:
        assert (installed / path.relative_to(repository)).read_bytes() == path.read_bytes(), path
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    assert size < 5_000_000


def test_the_sdist_builds_the_same_wheel(
    source: Path, installed: Path, tmp_path: Path, repository: Path
) -> None:
    for name in ("CITATION.cff", "LICENSE", "README.md", "CHANGELOG.md", "constraints.txt",
                 "otter_cli/py.typed", "recipes/demo/signals.yaml", "docs/method.md"):  # fmt: skip
        assert (source / name).read_bytes() == (repository / name).read_bytes(), name
    again = zipfile.ZipFile(build(source, "wheel", tmp_path))
    files = {name for name in again.namelist() if ".dist-info/" not in name}
    assert files == {
        path.relative_to(installed).as_posix()
        for path in (installed / "otter_cli").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_metadata_have_extras_and_no_invented_address(installed: Path) -> None:
    from otter_cli.core.distribution import DISTRIBUTION, EXTRAS

    [folder] = installed.glob("*.dist-info")
    metadata = message_from_string((folder / "METADATA").read_text())
    assert metadata["Name"] == DISTRIBUTION and metadata["License-Expression"] == "Apache-2.0"
    assert set(EXTRAS) <= set(metadata.get_all("Provides-Extra", []))
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert (installed / "otter_cli" / "py.typed").is_file()
    # The project has no public address yet, and none is made up.
    assert metadata.get_all("Project-URL") is None and metadata["Home-page"] is None


def test_the_citation_names_the_paper(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert paper["identifiers"][0]["value"] == "arXiv:2408.10764"
    assert paper["title"].startswith("Predicting Rewards Alongside Tokens")
    assert citation["license"] == "Apache-2.0" and "url" not in citation


def test_every_issue_form_asks_for_what_a_maintainer_needs(repository: Path) -> None:
    folder = repository / ".github" / "ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yml")}
    assert {"bug", "family", "question"} <= forms.keys()
    for name in forms.keys() - {"config"}:
        assert forms[name]["name"] and forms[name]["description"] and forms[name]["body"]
    assert "otter doctor --json" in (folder / "bug.yml").read_text()


@pytest.mark.slow
def test_a_clean_environment_runs_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """A new environment gets the wheel by pip. Dependencies come from this one's site-packages."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--quiet", str(wheel)], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    # The parent's folder, without the file that puts this checkout on its path.
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def otter(*arguments: str) -> str:
        done = subprocess.run(
            [str(environment / "bin" / "otter"), *arguments],
            capture_output=True, text=True, cwd=tmp_path, env=variables,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [str(python), "-c", "import otter_cli; print(otter_cli.__file__)"],
        capture_output=True, text=True, cwd=tmp_path, env=variables, check=True,
    ).stdout  # fmt: skip
    assert Path(where.strip()).is_relative_to(site)
    assert "graft" in otter("-h") and json.loads(otter("recipes", "--json"))["recipes"]
    assert "two sentences" in otter("explain", "-h") and "otter-lm" in otter("doctor", "--json")
    shown = subprocess.run([*pip, "show", "otter-lm"], capture_output=True, text=True, check=True)
    assert "Name: otter-lm" in shown.stdout
