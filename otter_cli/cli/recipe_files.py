"""The recipes that ship with otter: their names, paths, and the descriptions in their headers."""

from dataclasses import dataclass
from pathlib import Path

from otter_cli.core.errors import OtterError, closest
from otter_cli.core.strict_files import read_small_text_file


@dataclass(frozen=True)
class RecipeFile:
    """`name` is the path below recipes/ without its suffix. The first line of the file's header is
    the `summary`, the second the command that launches it."""

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
    """The recipe `demo/reward` or `demo/reward.yaml`. Raises OtterError with the closest name."""
    recipes = {recipe.name: recipe for recipe in recipe_files()}
    stem = name.removesuffix(".yaml")
    if stem not in recipes:
        near = closest(stem, recipes)
        hint = f"did you mean {near}?" if near else "`otter recipes ls` lists them"
        raise OtterError(f"no recipe named {name!r} ships with otter", hint=hint)
    return recipes[stem]


def recipe_path(name: str) -> Path:
    """The file at this path, or the shipped recipe of this name. Raises OtterError."""
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
