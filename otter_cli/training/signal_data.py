"""The signals that a recipe trains, and the data of each: encoded rows, batch order, a record.

The record says which files, rows and columns were used. Rows are checked before the first step:
columns, overlap, truncation, and lengths that the base can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import say, warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError, did_you_mean
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

_ROWS_PER_CHECK = 256
# The record's key for columns that nothing reads. It does not count when runs are compared.
IGNORED_COLUMNS = "ignored"
TRAINING_ROWS = "training"


def graft_signals(folder: Path, recipe: Recipe) -> dict[str, SignalConfig]:
    """The graft's signals that the recipe trains. Raises OtterError where the graft lacks one, or
    has it as another kind."""
    manifest = Manifest.read(folder)
    signals = {s.name: s for config in manifest.insertions for s in config.signals}
    for name, objective in recipe.signals.items():
        if name not in signals:
            raise OtterError(
                f"the recipe trains signal {name!r}, which {folder} does not have",
                hint=did_you_mean(name, signals) + f"its signals: {', '.join(signals) or 'none'}",
            )
        objective.check(signals[name])
    return {name: signals[name] for name in recipe.signals}


@dataclass(frozen=True)
class SignalData:
    """The data of one signal. `record`: the files, digests and counts. `validation`: training rows
    that are set aside to choose the best step."""

    train: Dataset
    test: Dataset | None
    order: LengthBuckets
    record: dict[str, Any]
    validation: Dataset | None = None

    def batch(self, step: int) -> Batch:
        return self.train.batch(self.order.rows(step))

    @property
    def datasets(self) -> list[Dataset]:
        return [data for data in (self.train, self.validation, self.test) if data is not None]


def load_signal_data(name: str, recipe: Recipe, signal: SignalConfig, tokenizer: Any) -> SignalData:
    """Reads and encodes a signal's data. Raises OtterError for bad rows and too much truncation."""
    objective = recipe.signals[name]
    split = _read_splits(objective, signal, recipe.data_folder, tokenizer)

    def encode(rows: Sequence[Any], what: str) -> Dataset:
        if what != TRAINING_ROWS:
            objective.check_test_rows(rows, signal, what)
        dataset = objective.encode(rows, tokenizer, recipe.max_length)
        check_identical(dataset.identical, len(rows), f"signal {name}, {what} rows")
        return dataset

    train = encode(split.train, TRAINING_ROWS)
    train.truncation.check(recipe.allow_truncation)
    test = encode(split.test, "test") if split.test else None
    validation = encode(split.validation, "validation") if split.validation else None
    record: dict[str, Any] = {
        "train": {**split.files[0], **_row_counts(train, split.train)},
        **split.splits,
    }
    if test is not None:
        record["test"] = {**split.files[-1], **_row_counts(test, split.test)}
        record["shared"] = _count_overlap(name, split.train, split.test)
    if validation is not None:
        record["validation"] = _row_counts(validation, split.validation)
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
    data: Mapping[str, SignalData], recipe: Recipe, folder: Path, device: str
) -> None:
    """Checks the texts against the base, and lets objectives compute the targets that the data
    lacks. Raises OtterError for texts that the base cannot read."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families.shape import base_shape

    check_lengths(data, base_shape(Checkpoint.open(folder).config))
    for name, signal_data in data.items():
        targets = recipe.signals[name].prepare_targets(signal_data.datasets, folder, device)
        signal_data.record.update(targets)


def check_lengths(data: Mapping[str, SignalData], shape: BaseShape) -> None:
    """Raises OtterError for texts beyond the base's positions or vocabulary, and for texts that
    cannot share a batch because the base's rotary angles depend on the longest one's length."""
    for name, signal_data in data.items():
        for dataset in signal_data.datasets:
            longest = max(dataset.lengths)
            if longest > shape.max_positions:
                raise OtterError(
                    f"signal {name}: a text of {longest} tokens, and the base has "
                    f"{shape.max_positions} positions",
                    hint=f"max_length: {shape.max_positions}",
                )
            _check_ids(dataset, shape, f"signal {name}")
            if shape.length_rule is not None:
                shortest = _shortest_length(dataset)
                shape.length_rule.check_one_side(shortest, longest, f"signal {name}")


def _shortest_length(dataset: Dataset) -> int:
    """Over all texts: `lengths` has the longer text of each pair alone."""
    rows = range(len(dataset.lengths))
    return min(int(dataset.batch([row]).attention_mask.sum(1).min()) for row in rows)


def _check_ids(dataset: Dataset, shape: BaseShape, where: str) -> None:
    count = len(dataset.lengths)
    for start in range(0, count, _ROWS_PER_CHECK):
        rows = range(start, min(start + _ROWS_PER_CHECK, count))
        largest = int(dataset.batch(rows).input_ids.max())
        if largest < shape.vocab:
            continue
        for row in rows:
            batch = dataset.batch([row])
            ids = batch.input_ids[batch.attention_mask.bool()].tolist()
            check_token_ids([ids], shape, f"{where}: row {row + 1}, text")
        raise OtterError(
            f"{where}: the tokenizer pads with id {largest}, and the base's vocabulary has "
            f"{shape.vocab} tokens",
            hint="name another pad_token in tokenizer_config.json: padding is masked, so that any "
            "token of the vocabulary will do",
        )


def held_out_rows(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> Sequence[Any]:
    """The rows that training with this objective leaves aside for the test."""
    return _read_splits(objective, signal, folder, tokenizer).test


@dataclass(frozen=True)
class _SplitRows:
    """Rows by their use, records of the one or two tables that they come from, and how rows were
    set aside."""

    train: Sequence[Any]
    test: Sequence[Any]
    validation: Sequence[Any]
    files: list[dict[str, Any]]
    splits: dict[str, Any]


def _read_splits(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> _SplitRows:
    source = objective.train
    rows, record = _read_source(objective, signal, source, folder, tokenizer)
    test: Sequence[Any] = ()
    validation: Sequence[Any] = ()
    files, splits = [record], {}
    if objective.test is not None:
        test, test_record = _read_source(objective, signal, objective.test, folder, tokenizer)
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
    rows: Sequence[Any], share: float, purpose: str, file: str, signal: str
) -> tuple[Sequence[Any], Sequence[Any], dict[str, Any]]:
    split = split_rows(rows, share, purpose, file)
    say(f"signal {signal}: {split.description(share, purpose)}")
    return split.training, split.held_out, split.record(share)


def _read_source(
    objective: Objective,
    signal: SignalConfig,
    source: DataSource,
    folder: Path | None,
    tokenizer: Any,
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The rows of a source, and a record of where they come from and which columns were read."""
    table = source.table(folder)
    sample = sample_rows(table)
    full_source = source.with_default_columns(sample, signal)
    ignored = ignored_columns(sample, full_source.read_columns(signal))
    defaults = {key: value for key, value in full_source if value != getattr(source, key)}
    _print_columns(signal.name, source.name, defaults, ignored)
    limited = None
    if source.limit is not None:
        table = limited = LimitedTable(table, source.limit, source.limit_seed)
    rendered = full_source.rendered_table(table, tokenizer)
    rows = objective.read_rows(full_source, rendered, signal)
    record: dict[str, Any] = {"path": source.name}
    if source.path is not None:
        record["sha256"] = sha256_file(find_data(source.path, folder))
    else:
        # The digest of a hub's dataset is of its rows: the hub may change files and their order.
        record |= {"subset": source.subset, "split": source.split, "revision": source.revision}
        record["sha256"] = sha256_json([r if isinstance(r, str) else asdict(r) for r in rows])
    if defaults:
        record["columns"] = defaults
    if ignored:
        record[IGNORED_COLUMNS] = ignored
    if limited is not None and limited.drawn and not limited.drawn.is_complete:
        record["drawn"] = limited.drawn.record()
    return rows, record


def _print_columns(signal: str, file: str, defaults: dict[str, Any], ignored: list[str]) -> None:
    """One line with the columns that the recipe does not name: those read by their usual names, and
    those that nothing reads."""
    parts = [
        f"{key}: {', '.join(value) if isinstance(value, tuple) else value}"
        for key, value in defaults.items()
    ]
    if ignored:
        parts.append(f"columns that are not read: {', '.join(map(repr, ignored))}")
    if parts:
        say(f"signal {signal}, {file}: {'; '.join(parts)}")


def _count_overlap(name: str, rows: Sequence[Any], test_rows: Sequence[Any]) -> int | None:
    """How many test rows share a text with the training rows; None for plain text."""
    if isinstance(rows[0], str):
        return None
    overlap = find_overlap(rows, test_rows)
    if overlap.shared:
        warn(
            f"signal {name}: {overlap.shared} of {overlap.test} test rows share a text with the "
            "training data"
        )
    return overlap.shared
