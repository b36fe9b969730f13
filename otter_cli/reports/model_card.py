"""The model card of a trained folder: data, objectives, figures with intervals, a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from otter_cli.core.units import bytes_text, count_text, seconds_text
from otter_cli.reports.page import Cell, Report, Section, Table

if TYPE_CHECKING:
    from otter_cli.training import Recipe, TrainResult
    from otter_cli.verification import Verdict


def model_card(result: TrainResult, recipe: Recipe, verdict: Verdict | None) -> Report:
    """`verdict` of the folder as it lies on disk; of a separate model, which has no base within,
    there is none."""
    sections = [
        Section("Held-out figures", _figures_text(result), [_figures(result)]),
        Section("Data", tables=[_data(result.data)]),
        Section("Objectives", tables=[_objectives(recipe)]),
    ]
    if verdict is not None:
        text = [f"Verdict: {verdict.name}. {verdict.sentence[:1].upper()}{verdict.sentence[1:]}"]
        sections.append(Section("The base", text))
    lead = (
        f"{result.steps} steps, {count_text(result.trained_parameters)} parameters trained in "
        f"{seconds_text(result.seconds)}."
    )
    return Report(
        f"Model card: {result.folder.resolve().name}", lead, sections, _facts(result, recipe)
    )


def _figures_text(result: TrainResult) -> list[str]:
    if not result.signals:
        return ["No data were held out: nothing is known of how well this works."]
    return ["With 95 % bootstrap intervals over the rows that were held out."]


def _figures(result: TrainResult) -> Table:
    rows = [
        [name, what.replace("_", " "), f"{v.mean:.4f}", f"{v.low:.4f} to {v.high:.4f}", f"{v.n:,}"]
        for name, figures in result.signals.items()
        for what, v in figures.items()
    ]
    return Table(["signal", "figure", "mean", "95 % interval", "n"], rows)


def _data(data: Mapping[str, Any]) -> Table:
    return Table(["signal", "part", "rows", "cut", "from", "sha256"], list(_parts(data)))


def _parts(data: Mapping[str, Any]) -> Iterator[list[Cell | str]]:
    for signal, record in data.items():
        for part in ("train", "validation", "test"):
            if part in record:
                of = record[part] if "path" in record[part] else {**record["train"], **record[part]}
                digest = of["sha256"][:12]
                yield [signal, part, f"{of['rows']:,}", f"{of['cut']:,}", of["path"], digest]
        if record.get("shared") is not None:
            yield [signal, "test rows seen in training", f"{record['shared']:,}", "", "", ""]


def _objectives(recipe: Recipe) -> Table:
    """What a recipe says of each signal, but for its files and what stands at its default."""
    rows: list[list[Cell | str]] = []
    for name, objective in recipe.signals.items():
        said = objective.model_dump(mode="json", exclude_defaults=True, exclude={"train", "test"})
        options = ", ".join(f"{k}: {v}" for k, v in said.items() if k != "objective")
        rows.append([name, objective.objective, options or "-"])
    return Table(["signal", "objective", "options"], rows, numeric=False)


def _facts(result: TrainResult, recipe: Recipe) -> list[tuple[str, str]]:
    from otter_cli.core.provenance import provenance

    made = provenance()
    recipe_text = (
        f"sha256 {recipe.sha256()[:12]}, seed {recipe.seed}, {recipe.steps} steps of "
        f"{recipe.batch_size} rows, rate {recipe.learning_rate:g} ({recipe.schedule})"
    )
    return [
        ("recipe", recipe_text),
        ("activations kept for gradients", bytes_text(result.memory["activations"])),
        ("peak memory above the weights", bytes_text(result.memory["peak"])),
        ("time", made["time"]),
        ("command", " ".join(made["command"])),
        ("versions", _listed(made["versions"])),
        ("hardware", _listed(made["hardware"])),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
