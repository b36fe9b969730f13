"""What a recipe's data files come to: encoded rows, the order of batches, and a record of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import say, warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.seeds import derive_seed
from otter_cli.data.batches import LengthBuckets
from otter_cli.data.columns import ignored_columns, sample_rows
from otter_cli.data.drawing import LimitedTable
from otter_cli.data.overlap import find_overlap
from otter_cli.data.paths import find_data
from otter_cli.data.preference import check_identical
from otter_cli.data.splits import split_rows
from otter_cli.signals import SignalConfig
from otter_cli.training.lengths import check_lengths
from otter_cli.training.objectives import Objective, Source

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch, Dataset
    from otter_cli.training.recipe import Recipe


# Columns of a table that nothing reads: told, and no part of what decides a run.
IGNORED = "ignored"
TRAIN = "training"


@dataclass(frozen=True)
class Material:
    """The data of one signal. `record` says what it was: names, digests, counts."""

    train: Dataset
    test: Dataset | None
    order: LengthBuckets
    record: dict[str, Any]
    # Training rows set aside to choose the best step by.
    validation: Dataset | None = None

    def batch(self, step: int) -> Batch:
        return self.train.batch(self.order.rows(step))


def load_material(name: str, recipe: Recipe, signal: SignalConfig, tokenizer: Any) -> Material:
    """Reads and encodes a signal's data. Raises OtterError for bad rows and too much truncation."""
    objective = recipe.signals[name]
    parts = _read(objective, signal, recipe.data_folder, tokenizer)

    def encoded(rows: Sequence[Any], what: str) -> Dataset:
        objective.check_rows(rows, signal, what, tested=what != TRAIN)
        dataset = objective.encode(rows, tokenizer, recipe.max_length)
        check_identical(dataset.identical, len(rows), f"signal {name}, {what} rows")
        return dataset

    train = encoded(parts.train, TRAIN)
    train.truncation.check(recipe.allow_truncation)
    test = encoded(parts.test, "test") if parts.test else None
    validation = encoded(parts.validation, "validation") if parts.validation else None
    record: dict[str, Any] = {
        "train": {**parts.files[0], **_counts(train, parts.train)},
        **parts.splits,
    }
    if test is not None:
        record["test"] = {**parts.files[-1], **_counts(test, parts.test)}
        record["shared"] = _shared(name, parts.train, parts.test)
    if validation is not None:
        record["validation"] = _counts(validation, parts.validation)
    order = LengthBuckets(
        train.lengths,
        objective.batch_size or recipe.batch_size,
        derive_seed("order", recipe.seed, name),
    )
    return Material(train, test, order, record, validation)


def _counts(dataset: Dataset, rows: Sequence[Any]) -> dict[str, Any]:
    left_out = {"identical": dataset.identical} if dataset.identical else {}
    return {"rows": len(rows) - dataset.identical, "cut": dataset.truncation.cut, **left_out}


def prepare(
    material: Mapping[str, Material], recipe: Recipe, folder: Path, device: str
) -> Mapping[str, Material]:
    """The same, with what an objective has to compute of it before it can be trained. Raises
    OtterError for texts that the base can't read."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families import base_shape

    check_lengths(material, base_shape(Checkpoint.open(folder).config))
    for name, found in material.items():
        parts = [part for part in (found.train, found.validation, found.test) if part is not None]
        found.record.update(recipe.signals[name].prepare(parts, folder, device))
    return material


def held_out_rows(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> Sequence[Any]:
    """The rows that training with this objective leaves aside."""
    return _read(objective, signal, folder, tokenizer).test


@dataclass(frozen=True)
class _Parts:
    """Rows by their use, the one or two tables that they are from, and how rows were set aside."""

    train: Sequence[Any]
    test: Sequence[Any]
    validation: Sequence[Any]
    files: list[dict[str, Any]]
    splits: dict[str, Any]


def _read(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> _Parts:
    source, test_source = objective.sources
    rows, record = _table(objective, signal, source, folder, tokenizer)
    test: Sequence[Any] = ()
    validation: Sequence[Any] = ()
    files, splits = [record], {}
    if test_source is not None:
        test, test_record = _table(objective, signal, test_source, folder, tokenizer)
        files.append(test_record)
    elif objective.held_out is not None:
        rows, test, splits["held_out"] = _set_aside(
            rows, objective.held_out, "held out", source.name, signal.name
        )
    if objective.validation is not None:
        rows, validation, splits["set_aside"] = _set_aside(
            rows, objective.validation, "validation", source.name, signal.name
        )
    return _Parts(rows, test, validation, files, splits)


def _set_aside(
    rows: Sequence[Any], share: float, why: str, file: str, signal: str
) -> tuple[Sequence[Any], Sequence[Any], dict[str, Any]]:
    split = split_rows(rows, share, why, file)
    say(f"signal {signal}: {split.sentence(share, why)}")
    return split.kept, split.aside, split.record(share)


def _table(
    objective: Objective, signal: SignalConfig, source: Source, folder: Path | None, tokenizer: Any
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The rows of a source, and a record of where they are from and which columns were read."""
    whole = source.table(folder)
    sample = sample_rows(whole)
    resolved = source.resolved(sample, signal)
    ignored = ignored_columns(sample, resolved.used(signal))
    chosen = {key: value for key, value in resolved if value != getattr(source, key)}
    _tell_columns(signal.name, source.name, chosen, ignored)
    table = whole if source.limit is None else LimitedTable(whole, source.limit, source.limit_seed)
    rows = objective.rows(resolved, resolved.place(table, tokenizer), signal)
    record: dict[str, Any] = {"path": source.name}
    if source.path is not None:
        record["sha256"] = sha256_file(find_data(source.path, folder))
    else:
        # Of a dataset the rows themselves: its files and their order are the hub's affair.
        record |= {"subset": source.subset, "split": source.split, "revision": source.revision}
        record["sha256"] = sha256_json([r if isinstance(r, str) else asdict(r) for r in rows])
    if chosen:
        record["columns"] = chosen
    if ignored:
        record[IGNORED] = ignored
    if isinstance(table, LimitedTable) and table.drawn and not table.drawn.whole:
        record["drawn"] = table.drawn.record()
    return rows, record


def _tell_columns(signal: str, file: str, chosen: dict[str, Any], ignored: list[str]) -> None:
    """One line of what a recipe does not say itself: columns by their usual names, and others."""
    told = [f"{key}: {_column(value)}" for key, value in chosen.items()]
    if ignored:
        told.append(f"columns that are not read: {', '.join(map(repr, ignored))}")
    if told:
        say(f"signal {signal}, {file}: {'; '.join(told)}")


def _column(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _shared(name: str, rows: Sequence[Any], test_rows: Sequence[Any]) -> int | None:
    """How many test rows have a text that was trained on; plain text is not compared."""
    if isinstance(rows[0], str):
        return None
    overlap = find_overlap(rows, test_rows)
    if overlap.shared:
        warn(
            f"signal {name}: {overlap.shared} of {overlap.test} test rows share a text with the "
            "training data"
        )
    return overlap.shared
