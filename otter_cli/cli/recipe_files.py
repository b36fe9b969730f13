"""The recipes that ship with otter: found, named, and described from their own header comments."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError, closest
from otter_cli.core.strict_files import read_small_text_file


@dataclass(frozen=True)
class RecipeFile:
    """`name` is the path below recipes/ without its ending; header: line 1 says what, 2 how."""

    name: str
    path: Path
    summary: str
    launch: str


def recipe_root() -> Path:
    """recipes/ inside an installed package, or at the top of a checkout (editable install)."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_files() -> list[RecipeFile]:
    """Every recipe that ships, sorted by name."""
    root = recipe_root()
    return [_read_header(path, root) for path in sorted(root.rglob("*.yaml"))]


def find_recipe(name: str) -> RecipeFile:
    """By name, `demo/reward` or `demo/reward.yaml`; raises OtterError naming the closest."""
    found = {recipe.name: recipe for recipe in recipe_files()}
    wanted = name.removesuffix(".yaml")
    if wanted not in found:
        near = closest(wanted, found)
        hint = f"did you mean {near}?" if near else "`otter recipes ls` lists them"
        raise OtterError(f"no recipe named {name!r} ships with otter", hint=hint)
    return found[wanted]


def recipe_path(name: str) -> Path:
    """A file of that path, or the recipe that ships by that name. Raises OtterError."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise OtterError(f"{name} is a folder, not a recipe", hint="give the YAML file in it")
    if path.exists():
        raise OtterError(f"{name} is not a regular file", hint="give a YAML file")
    try:
        return find_recipe(name).path
    except OtterError as error:
        if path.suffix not in (".yaml", ".yml") and not name.startswith((".", "/", "~")):
            raise
        raise OtterError(f"the recipe file {name} does not exist", hint=error.hint) from None


def _read_header(path: Path, root: Path) -> RecipeFile:
    header = []
    for line in read_small_text_file(path).splitlines()[:2]:
        if line.startswith("#"):
            header.append(line.lstrip("# ").rstrip())
    summary, launch = [*header, "", ""][:2]
    return RecipeFile(path.relative_to(root).with_suffix("").as_posix(), path, summary, launch)


def placed_files_record(source: Path, files: Iterable[str], out: Path) -> dict[str, Any]:
    """`linked` files are hard links: a change in one of them changes the source too."""
    from otter_cli.checkpoint.link_or_copy import hard_linked

    present = [file for file in files if (out / file).is_file()]
    linked = hard_linked(source, present, out)
    return {"linked": linked, "copied": [file for file in present if file not in linked]}


def placed_files_text(record: dict[str, Any], source: Path | str) -> str:
    """The same for people."""
    linked, copied = record["linked"], record["copied"]
    if not linked:
        return f"{len(copied)} files of {source} are copies"
    names = ", ".join(linked[:3]) + (f" and {len(linked) - 3} more" if len(linked) > 3 else "")
    be, them = ("is a hard link", "it") if len(linked) == 1 else ("are hard links", "them")
    rest = f"; {len(copied)} files are copies" if copied else ""
    return f"{names} {be}: a change in {them} changes {source} too{rest}"
