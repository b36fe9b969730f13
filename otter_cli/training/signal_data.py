"""The signals that a recipe trains, and the data of each: encoded rows, batch order, a record.

The record says which files, rows and columns were used. Rows are checked before the first step:
columns, overlap, truncation, lengths that the base can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import say, warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError, closest
from otter_cli.core.process import derive_seed
from otter_cli.data.batches import LengthBuckets
from otter_cli.data.columns import ignored_columns, sample_rows
from otter_cli.data.pairs import check_identical
from otter_cli.data.splits import LimitedTable, find_overlap, split_rows
from otter_cli.data.tables import find_data
from otter_cli.families.shape import BaseShape
from otter_cli.families.token_ids import check_token_ids
from otter_cli.graft.manifest import Manifest
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import DataSource, Objective

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch, Dataset
    from otter_cli.training.recipe import Recipe


def load_graft_tokenizer(folder: str | Path) -> Any:
    """The strict loader's. It is imported late: a recipe is read and refused without torch."""
    from otter_cli.model import load

    return load.load_tokenizer(folder)


def graft_signals(folder: Path, recipe: Recipe) -> dict[str, SignalConfig]:
    """The graft's signals that the recipe trains. Raises OtterError where it lacks one, or has it
    as another kind."""
    manifest = Manifest.read(folder)
    signals = {s.name: s for config in manifest.insertions for s in config.signals}
    for name, objective in recipe.signals.items():
        if name not in signals:
            near = closest(name, signals)
            raise OtterError(
                f"the recipe trains signal {name!r}, which {folder} does not have",
                hint=(f"did you mean {near!r}? " if near else "")
                + f"its signals: {', '.join(signals) or 'none'}",
            )
        objective.check(signals[name])
    return {name: signals[name] for name in recipe.signals}


_ROWS_PER_CHECK = 256


def check_lengths(material: Mapping[str, SignalData], shape: BaseShape) -> None:
    """Raises OtterError for texts beyond the base's positions or vocabulary, and for texts that
    can't share a batch, since the base's rotary angles depend on the length of the longest."""
    for name, found in material.items():
        for data in _datasets(found):
            longest = max(data.lengths)
            if longest > shape.max_positions:
                raise OtterError(
                    f"signal {name}: a text of {longest} tokens, and the base has "
                    f"{shape.max_positions} positions",
                    hint=f"max_length: {shape.max_positions}",
                )
            _check_ids(data, shape, f"signal {name}")
            if shape.length_rule is not None:
                shape.length_rule.check_one_side(_shortest_length(data), longest, f"signal {name}")


def _shortest_length(data: Dataset) -> int:
    """Of a pair both texts count; `lengths` are those of the longer."""
    rows = range(len(data.lengths))
    return min(int(data.batch([row]).attention_mask.sum(1).min()) for row in rows)


def _check_ids(data: Dataset, shape: BaseShape, where: str) -> None:
    rows = len(data.lengths)
    for start in range(0, rows, _ROWS_PER_CHECK):
        batch = data.batch(range(start, min(start + _ROWS_PER_CHECK, rows)))
        largest = int(batch.input_ids.max())
        if largest < shape.vocab:
            continue
        for row in range(start, min(start + _ROWS_PER_CHECK, rows)):
            one = data.batch([row])
            ids = one.input_ids[one.attention_mask.bool()].tolist()
            check_token_ids([ids], shape, f"{where}: row {row + 1}, text")
        raise OtterError(
            f"{where}: the tokenizer pads with id {largest}, and the base's vocabulary has "
            f"{shape.vocab} tokens",
            hint="name another pad_token in tokenizer_config.json: padding is masked, so that any "
            "token of the vocabulary will do",
        )


def _datasets(material: SignalData) -> Iterator[Dataset]:
    for data in (material.train, material.validation, material.test):
        if data is not None:
            yield data


# Columns of a table that nothing reads: told, and no part of what decides a run.
IGNORED_COLUMNS = "ignored"
TRAINING_ROWS = "training"


@dataclass(frozen=True)
class SignalData:
    """The data of one signal. `record` says what it was: names, digests, counts."""

    train: Dataset
    test: Dataset | None
    order: LengthBuckets
    record: dict[str, Any]
    # Training rows set aside to choose the best step by.
    validation: Dataset | None = None

    def batch(self, step: int) -> Batch:
        return self.train.batch(self.order.rows(step))


def load_signal_data(name: str, recipe: Recipe, signal: SignalConfig, tokenizer: Any) -> SignalData:
    """Reads and encodes a signal's data. Raises OtterError for bad rows and too much truncation."""
    objective = recipe.signals[name]
    parts = _read_splits(objective, signal, recipe.data_folder, tokenizer)

    def encoded(rows: Sequence[Any], what: str) -> Dataset:
        objective.check_rows(rows, signal, what, tested=what != TRAINING_ROWS)
        dataset = objective.encode(rows, tokenizer, recipe.max_length)
        check_identical(dataset.identical, len(rows), f"signal {name}, {what} rows")
        return dataset

    train = encoded(parts.train, TRAINING_ROWS)
    train.truncation.check(recipe.allow_truncation)
    test = encoded(parts.test, "test") if parts.test else None
    validation = encoded(parts.validation, "validation") if parts.validation else None
    record: dict[str, Any] = {
        "train": {**parts.files[0], **_row_counts(train, parts.train)},
        **parts.splits,
    }
    if test is not None:
        record["test"] = {**parts.files[-1], **_row_counts(test, parts.test)}
        record["shared"] = _count_overlap(name, parts.train, parts.test)
    if validation is not None:
        record["validation"] = _row_counts(validation, parts.validation)
    order = LengthBuckets(
        train.lengths,
        objective.batch_size or recipe.batch_size,
        derive_seed("order", recipe.seed, name),
    )
    return SignalData(train, test, order, record, validation)


def _row_counts(dataset: Dataset, rows: Sequence[Any]) -> dict[str, Any]:
    left_out = {"identical": dataset.identical} if dataset.identical else {}
    return {"rows": len(rows) - dataset.identical, "cut": dataset.truncation.cut, **left_out}


def prepare_signal_data(
    material: Mapping[str, SignalData], recipe: Recipe, folder: Path, device: str
) -> Mapping[str, SignalData]:
    """The same, with what an objective has to compute of it before it can be trained. Raises
    OtterError for texts that the base can't read."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families.shape import base_shape

    check_lengths(material, base_shape(Checkpoint.open(folder).config))
    for name, found in material.items():
        parts = [part for part in (found.train, found.validation, found.test) if part is not None]
        found.record.update(recipe.signals[name].prepare(parts, folder, device))
    return material


def held_out_rows(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> Sequence[Any]:
    """The rows that training with this objective leaves aside."""
    return _read_splits(objective, signal, folder, tokenizer).test


@dataclass(frozen=True)
class _SplitRows:
    """Rows by their use, the one or two tables that they are from, and how rows were set aside."""

    train: Sequence[Any]
    test: Sequence[Any]
    validation: Sequence[Any]
    files: list[dict[str, Any]]
    splits: dict[str, Any]


def _read_splits(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> _SplitRows:
    source, test_source = objective.sources
    rows, record = _read_source(objective, signal, source, folder, tokenizer)
    test: Sequence[Any] = ()
    validation: Sequence[Any] = ()
    files, splits = [record], {}
    if test_source is not None:
        test, test_record = _read_source(objective, signal, test_source, folder, tokenizer)
        files.append(test_record)
    elif objective.held_out is not None:
        rows, test, splits["held_out"] = _set_aside(
            rows, objective.held_out, "held out", source.name, signal.name
        )
    if objective.validation is not None:
        rows, validation, splits["set_aside"] = _set_aside(
            rows, objective.validation, "validation", source.name, signal.name
        )
    return _SplitRows(rows, test, validation, files, splits)


def _set_aside(
    rows: Sequence[Any], share: float, why: str, file: str, signal: str
) -> tuple[Sequence[Any], Sequence[Any], dict[str, Any]]:
    split = split_rows(rows, share, why, file)
    say(f"signal {signal}: {split.sentence(share, why)}")
    return split.kept, split.aside, split.record(share)


def _read_source(
    objective: Objective,
    signal: SignalConfig,
    source: DataSource,
    folder: Path | None,
    tokenizer: Any,
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The rows of a source, and a record of where they are from and which columns were read."""
    whole = source.table(folder)
    sample = sample_rows(whole)
    resolved = source.resolved(sample, signal)
    ignored = ignored_columns(sample, resolved.used(signal))
    chosen = {key: value for key, value in resolved if value != getattr(source, key)}
    _print_columns(signal.name, source.name, chosen, ignored)
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
        record[IGNORED_COLUMNS] = ignored
    if isinstance(table, LimitedTable) and table.drawn and not table.drawn.whole:
        record["drawn"] = table.drawn.record()
    return rows, record


def _print_columns(signal: str, file: str, chosen: dict[str, Any], ignored: list[str]) -> None:
    """One line of what a recipe does not say itself: columns by their usual names, and others."""
    told = [f"{key}: {_column_text(value)}" for key, value in chosen.items()]
    if ignored:
        told.append(f"columns that are not read: {', '.join(map(repr, ignored))}")
    if told:
        say(f"signal {signal}, {file}: {'; '.join(told)}")


def _column_text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _count_overlap(name: str, rows: Sequence[Any], test_rows: Sequence[Any]) -> int | None:
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
