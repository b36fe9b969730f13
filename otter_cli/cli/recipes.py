"""`otter recipes`: lists, shows and copies the recipes that ship."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.help_page import VerbGroupPage
from otter_cli.cli.recipe_files import RecipeFile, find_recipe, recipe_files
from otter_cli.cli.tables import plain_table
from otter_cli.core.atomic import write_text
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_small_text_file

if TYPE_CHECKING:
    from rich.console import RenderableType


class _ListsByDefault(VerbGroupPage):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        subcommand_named = any(not arg.startswith("-") for arg in args)
        return super().parse_args(
            ctx, args if subcommand_named or {"--help", "-h"} & set(args) else ["ls", *args]
        )


app = verb_app(
    help="The recipes that ship: YAML files to copy and edit. Without a subcommand: `ls`.",
    example="otter recipes cp demo/reward my-reward.yaml",
    cls=_ListsByDefault,
)

RecipeName = Annotated[str, typer.Argument(help="as `otter recipes ls` shows it, e.g. demo/reward")]


@verb(app, example="otter recipes ls")
def ls() -> Outcome:
    """List the recipes that ship."""
    recipes = recipe_files()
    data = [{"name": r.name, "summary": r.summary, "launch": r.launch} for r in recipes]
    return Outcome({"recipes": data}, view=lambda: _table(recipes))


@verb(app, example="otter recipes show demo/reward")
def show(name: RecipeName) -> Outcome:
    """Print one recipe."""
    recipe = find_recipe(name)
    text = read_small_text_file(recipe.path)
    return Outcome({"name": recipe.name, "text": text}, view=lambda: text.rstrip())


@verb(app, example="otter recipes cp demo/reward my-reward.yaml")
def cp(
    name: RecipeName,
    to: Annotated[Path, typer.Argument(help="a new file, or a folder that exists")],
) -> Outcome:
    """Copy a recipe so that you can edit it."""
    recipe = find_recipe(name)
    target = to / recipe.path.name if to.is_dir() else to
    if target.exists():
        raise OtterError(f"{target} exists", hint="choose another name, or remove it first")
    write_text(target, read_small_text_file(recipe.path))
    return Outcome({"name": recipe.name, "path": target}, view=lambda: str(target))


def _table(recipes: list[RecipeFile]) -> "RenderableType":
    table = plain_table("recipe", "what it does")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.summary)
    return table
