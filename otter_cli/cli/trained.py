"""What `otter train` ends with: a verdict on the base, a model card, a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.training import Recipe, TrainResult
    from otter_cli.training.find_rate import RateSearch
    from otter_cli.verification import Verdict

CARD = Path("training", "card.md")


def verdict_of(folder: Path, *, static: bool) -> Verdict | None:
    """Of the base within the folder: its files, or what it says too. None where there is none."""
    from otter_cli.insertion import MANIFEST
    from otter_cli.verification import Request, decide, verify

    if not (folder / MANIFEST).is_file():
        return None
    return decide(verify(Request(folder, static_only=static)))


def write_card(result: TrainResult, recipe: Recipe, verdict: Verdict | None) -> Path:
    from otter_cli.core.atomic import write_text
    from otter_cli.reports.markdown import markdown_page
    from otter_cli.reports.model_card import model_card

    path = result.folder / CARD
    write_text(path, markdown_page(model_card(result, recipe, verdict)))
    return path


def view(result: TrainResult, card: Path, verdict: Verdict | None) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    from otter_cli.core.units import count_text, seconds_text

    table = Table(
        "signal", "held out", "mean", "95 % interval", "n", box=None, header_style="bold",
        pad_edge=False,
    )  # fmt: skip
    for name, figures in result.signals.items():
        for what, value in figures.items():
            low_high = f"{value.low:.4f} to {value.high:.4f}"
            table.add_row(name, what, f"{value.mean:.4f}", low_high, f"{value.n:,}")
    trained = count_text(result.trained_parameters)
    return Group(
        f"{result.folder}: {result.steps} steps, {seconds_text(result.seconds)}, "
        f"{trained} parameters trained",
        *([table] if result.signals else []),
        *([f"the base: {verdict.name}"] if verdict else []),
        f"model card: {card}",
    )


def rates_view(found: RateSearch) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table("rate", "loss", "", box=None, header_style="bold", pad_edge=False)
    # Every third of them shows the curve as well, on one screen.
    for number, (rate, loss) in enumerate(zip(found.rates, found.losses, strict=True)):
        if number % 3 == 0 or rate == found.suggestion:
            table.add_row(f"{rate:.2e}", f"{loss:.4f}", "<" if rate == found.suggestion else "")
    return Group(table, f"the loss falls steepest at learning_rate: {found.suggestion:.1e}")
