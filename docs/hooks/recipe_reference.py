"""Writes the pages of recipes and of their keys when the site is built, from the shipped files and
from the pydantic models."""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from cli_reference import cell


def on_files(files: Any, config: Any, **_: Any) -> Any:
    files.append(File.generated(config, "reference/recipes.md", content=recipes_page()))
    files.append(File.generated(config, "reference/configuration.md", content=keys_page()))
    return files


def recipes_page() -> str:
    """The text of recipes/README.md, then every recipe that ships."""
    from otter_cli.cli.recipe_files import recipe_files, recipe_root

    parts = [(recipe_root() / "README.md").read_text().strip(), "## Recipes that ship"]
    for recipe in recipe_files():
        text = recipe.path.read_text().rstrip()
        parts += [f"### {recipe.name}", cell(recipe.summary), f"```yaml\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def keys_page() -> str:
    """The keys of every model that a user writes, with types, defaults and comments."""
    from otter_cli.benchmarks.matrix.recipe import CellChange, ExtraGraft, MatrixRecipe
    from otter_cli.graft.config import InsertionConfig
    from otter_cli.signals.config import SignalConfig
    from otter_cli.training.objectives import OBJECTIVES
    from otter_cli.training.recipe import AllBaselineSettings, Recipe

    parts = [_INTRODUCTION, "## A training recipe", *_model(Recipe, 3)]
    parts += ["## Objectives", "`objective:` in the section of a signal chooses one of these."]
    sources: dict[type, None] = {}
    for objective in OBJECTIVES:
        name = objective.model_fields["objective"].default
        parts += _model(objective, 3, title=str(name), extra=_trains(objective))
        sources |= dict.fromkeys(_models_in(objective.model_fields["train"].annotation))
    parts += ["## Data", "What `train:` and `test:` of an objective hold."]
    for source in sources:
        parts += _model(source, 3)
    parts += ["## Baselines", *_model(AllBaselineSettings, 3)]
    for name, field in AllBaselineSettings.model_fields.items():
        parts += _model(field.annotation, 3, title=f"baselines.{name}")
    parts += ["## A matrix of benchmarks", *_model(MatrixRecipe, 3)]
    parts += [*_model(CellChange, 3), *_model(ExtraGraft, 3)]
    parts += ["## What `otter.json` records", *_model(InsertionConfig, 3), *_model(SignalConfig, 3)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Keys of recipes and configurations

This page is made from the models that check these files. Unknown keys are refused, with the nearest
right key. `otter train --save-recipe FILE` writes a recipe to begin with."""


def _model(model: Any, level: int, *, title: str = "", extra: str = "") -> list[str]:
    parts = [f"{'#' * level} {title or model.__name__}"]
    doc = model.__dict__.get("__doc__")
    if doc:
        parts.append("\n\n".join(cell(part) for part in inspect.cleandoc(doc).split("\n\n")))
    if extra:
        parts.append(extra)
    comments = field_comments(model)
    rows = [
        "| "
        + " | ".join(
            [
                f"`{name}`",
                _type(field.annotation),
                _default(field),
                cell(comments.get(name) or _explained(name)),
            ]
        )
        + " |"
        for name, field in model.model_fields.items()
    ]
    if rows:
        parts.append("\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]))
    return parts


def _trains(objective: Any) -> str:
    kinds = ", ".join(f"`{kind}`" for kind in objective.kinds)
    return f"Trains signals of kind {kinds}."


def field_comments(model: Any) -> dict[str, str]:
    """The comment above each field, in the source of the class and of its bases."""
    comments: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not kind.__module__.startswith("otter_cli."):
            continue
        lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
        for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above = []
                for line in reversed(lines[: node.lineno - 1]):
                    if not line.strip().startswith("#"):
                        break
                    above.insert(0, line.strip().removeprefix("#").strip())
                if above:
                    comments[node.target.id] = " ".join(above)
    return comments


def _explained(key: str) -> str:
    """The text of `otter explain KEY`, where the glossary has such a key."""
    from otter_cli.core.glossary import glossary

    texts = {term.name: term.text for term in glossary() if term.group == "recipe keys"}
    return texts.get(key, "")


def _models_in(annotation: Any) -> list[type]:
    """The models that an annotation names."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if "discriminator" in str(annotation):
        return "an objective for each signal"
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else ""
    text = text or re.sub(r"\b(?:typing|pathlib|[a-z_]+(?:\.[a-z_]+)+)\.", "", str(annotation))
    text = re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", text)
    for _ in range(2):  # Optional[Literal[...]]
        text = re.sub(r"(?:Literal|Optional)\[([^\[\]]*)\]", r"\1", text)
    text = text.replace(" | None", "").replace("'", "")
    return f"`{text}`".replace("|", "\\|")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or hasattr(type(value), "model_fields") or value in ((), {}):
        return ""
    return f"`{value}`"
