"""What a recipe's data files come to: encoded rows, the order of batches, and a record of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.data.batches import LengthBuckets
from otter_cli.data.overlap import find_overlap
from otter_cli.data.paths import find_data
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Objective, Source

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch, Dataset
    from otter_cli.training.recipe import Recipe


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
    rows, test_rows, files = _read(objective, signal, recipe.data_folder, tokenizer)
    aside: Sequence[Any] = ()
    if objective.validation is not None:
        path = files[0]["path"]
        rows, aside = _set_aside(rows, objective.validation, path, "validation")
    train = objective.encode(rows, tokenizer, recipe.max_length)
    train.truncation.check(recipe.allow_truncation)
    test = objective.encode(test_rows, tokenizer, recipe.max_length) if test_rows else None
    record: dict[str, Any] = {"train": {**files[0], "rows": len(rows), "cut": train.truncation.cut}}
    if test is not None:
        record["test"] = {**files[-1], "rows": len(test_rows), "cut": test.truncation.cut}
        record["shared"] = _shared(name, rows, test_rows)
    validation = objective.encode(aside, tokenizer, recipe.max_length) if aside else None
    if validation is not None:
        record["validation"] = {"rows": len(aside), "cut": validation.truncation.cut}
    order = LengthBuckets(
        train.lengths,
        objective.batch_size or recipe.batch_size,
        derive_seed("order", recipe.seed, name),
    )
    return Material(train, test, order, record, validation)


def prepare(
    material: Mapping[str, Material], recipe: Recipe, folder: Path, device: str
) -> Mapping[str, Material]:
    """The same, with what an objective has to compute of it before it can be trained."""
    for name, found in material.items():
        parts = [part for part in (found.train, found.validation, found.test) if part is not None]
        found.record.update(recipe.signals[name].prepare(parts, folder, device))
    return material


def held_out_rows(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> Sequence[Any]:
    """The rows that training with this objective leaves aside."""
    return _read(objective, signal, folder, tokenizer)[1]


def _read(
    objective: Objective, signal: SignalConfig, folder: Path | None, tokenizer: Any
) -> tuple[Sequence[Any], Sequence[Any], list[dict[str, Any]]]:
    """Training rows, test rows, and the one or two tables that they are from."""
    train, test = objective.sources
    rows, record = _table(objective, signal, train, folder, tokenizer)
    if test is not None:
        test_rows, test_record = _table(objective, signal, test, folder, tokenizer)
        return rows, test_rows, [record, test_record]
    if objective.held_out is None:
        return rows, [], [record]
    rows, test_rows = _set_aside(rows, objective.held_out, train.name, "held out")
    return rows, test_rows, [record]


def _set_aside(
    rows: Sequence[Any], share: float, file: str, why: str
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The rows that stay, and a share of them by their texts: another one for another reason."""
    kept: list[Any] = []
    aside: list[Any] = []
    for row in rows:
        (aside if _held(why, _text(row), share) else kept).append(row)
    if not kept or not aside:
        raise OtterError(
            f"{file}: {why.replace(' ', '_')} {share} of {len(rows)} rows leaves "
            f"{len(kept)} to train on and {len(aside)} to test",
            hint="give more rows, or a test file",
        )
    return kept, aside


def _table(
    objective: Objective, signal: SignalConfig, source: Source, folder: Path | None, tokenizer: Any
) -> tuple[Sequence[Any], dict[str, Any]]:
    rows = objective.rows(source, source.place(folder, tokenizer), signal)
    if source.path is not None:
        return rows, {"path": source.path, "sha256": sha256_file(find_data(source.path, folder))}
    # Of a dataset the rows themselves: its files and their order are the hub's affair.
    digest = sha256_json([row if isinstance(row, str) else asdict(row) for row in rows])
    of = {"subset": source.subset, "split": source.split, "revision": source.revision}
    return rows, {"path": source.name, **of, "sha256": digest}


def _held(why: str, text: str, share: float) -> bool:
    """By the text's digest: equal texts fall on the same side, whatever else is in the file."""
    return derive_seed(why, text) % 10_000 < 10_000 * share


def _text(row: Any) -> str:
    return row if isinstance(row, str) else "\x1f".join(row.identity)


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
