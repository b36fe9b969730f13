"""`otter bench detection`: a signal as a monitor of text that is still being written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.options import Device, Folder, Limit, Out, Signal, option
from otter_cli.cli.bench.show import run_and_show
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.benchmarks.assemble_detection import Texts


@verb(
    app,
    example="""\
    otter bench detection grafted --recipe detox/davidson --monitor head=head-only
    otter bench detection grafted --pairs paradetox.test.jsonl.gz --classifier separate""",
)
def detection(
    folder: Folder,
    recipe: Annotated[
        str | None, option("--recipe", "whose held-out rows are read, one label each", "Texts")
    ] = None,
    pairs: Annotated[
        Path | None, option("--pairs", "chosen texts and rejected ones, which offend", "Texts")
    ] = None,
    data: Annotated[
        Path | None, option("--data", "folder of the recipe's data files", "Texts")
    ] = None,
    limit: Limit = None,
    signal: Signal = "toxicity",
    monitor: Annotated[
        list[str] | None,
        option("--monitor", "NAME=FOLDER, a task head, a probe, another graft; again", "Methods"),
    ] = None,
    classifier: Annotated[
        Path | None, option("--classifier", "`otter train --baseline separate`", "Methods")
    ] = None,
    device: Device = "cpu",
    out: Out = None,
) -> Outcome:
    """Scores at every token of labelled text: who flags it, how early, and at what cost.

    AUROC, F1, share flagged at 1 % false alarms, on time (before the offending span ends; without
    spans, the text), tokens read until then, what stopping at a threshold saves and loses.
    """
    from otter_cli.benchmarks.assemble_detection import detection as assembled

    if (recipe is None) == (pairs is None):
        raise OtterError("give either --recipe or --pairs", hint="they name the texts to read")
    monitors = dict(map(_named, monitor or ()))
    texts = _texts(recipe, pairs, data, signal)
    return run_and_show(
        assembled(
            folder, texts, signal, limit=limit, monitors=monitors, classifier=classifier,
            device=device,
        ),
        out,
    )  # fmt: skip


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise OtterError(f"--monitor {text!r} is no NAME=FOLDER", hint="for example head=head-only")
    return name, Path(folder)


def _texts(recipe: str | None, pairs: Path | None, data: Path | None, signal: str) -> Texts:
    from otter_cli.benchmarks.assemble_detection import Texts
    from otter_cli.benchmarks.labelled_texts import of_labelled, of_pairs

    if pairs is not None:
        from otter_cli.data.preference import read_pairs

        return Texts(pairs, of_pairs(read_pairs(pairs)))
    from otter_cli.cli.recipe_files import find_recipe
    from otter_cli.signals import SignalConfig
    from otter_cli.training import load_recipe
    from otter_cli.training.material import held_out_rows

    assert recipe is not None
    path = Path(recipe) if Path(recipe).is_file() else find_recipe(recipe).path
    loaded = load_recipe(path, data=data).only([signal])
    config = SignalConfig(name=signal, kind="classes", labels=(signal,))
    rows = held_out_rows(loaded.signals[signal], config, loaded.data_folder)
    if not rows:
        raise OtterError(f"{path} holds no rows aside", hint="give it a test file, or held_out")
    return Texts(Path(loaded.signals[signal].sources[0].name), of_labelled(rows))
