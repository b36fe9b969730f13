"""A recipe from a data file: the objective, and sizes that fit the data and the base.

The choices are printed. The recipe can be saved and edited."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from otter_cli.core.console import say, warn
from otter_cli.core.errors import OtterError
from otter_cli.data.columns import sample_rows
from otter_cli.signals.config import SignalConfig
from otter_cli.training.recipe import Recipe

if TYPE_CHECKING:
    from otter_cli.data.tables import TableLike
    from otter_cli.training.objectives.objective import DataSource, Objective


DataKind = Literal["pairs", "labels", "texts"]

# The objective by form of data and kind of signal. Values are read while a text is being written,
# so every prefix is trained, not the end alone.
_OBJECTIVES: Mapping[DataKind, Mapping[str, dict[str, Any]]] = {
    "pairs": {
        "value": {"objective": "bradley-terry", "positions": "every"},
        "vocabulary": {"objective": "autoregressive"},
    },
    "labels": {
        "value": {"objective": "pointwise", "positions": "every"},
        "classes": {"objective": "classification", "positions": "every"},
        "vocabulary": {"objective": "action-values"},
    },
    "texts": {"future": {"objective": "future-tokens"}},
}
_BLOCK_TOKENS = 256  # of a block of plain text
_MAX_LENGTH = 1024
_TOKENS_PER_STEP = 2048
_TOTAL_TOKENS = 400_000
_MAX_EPOCHS = 4
_STEP_RANGE = (30, 1000)
_FEW_ROWS = 20  # with fewer rows none is held out
_LENGTH_SAMPLE = 2000  # rows whose lengths are measured


@dataclass(frozen=True)
class DataFile:
    """A file to train on, and the columns that the user named."""

    kind: DataKind
    path: Path
    columns: Mapping[str, Any] = field(default_factory=dict)
    chat: bool | None = None
    eos: bool = True
    limit: int | None = None
    # A file of test rows. Without it some rows are held out.
    test: Path | None = None


def recipe_from_data(
    data: DataFile,
    signals: Sequence[SignalConfig],
    tokenizer: Any,
    *,
    positions: int,
    width: int,
    seed: int = 0,
) -> dict[str, Any]:
    """The recipe, as a mapping that YAML holds, for the `signals` that such data can train.

    `positions` and `width` are the base's. Raises OtterError where no signal fits the data.
    """
    fitting = trainable_signals(data.kind, signals)
    first = fitting[0]
    data = _with_chat(data, first, tokenizer)
    sections = {s.name: _signal_section(data, s) for s in fitting}
    objective = _objective(sections[first.name], first)
    table, source = _table_and_source(objective, first)
    rows = list(objective.read_rows(source, source.rendered_table(table, tokenizer), first))
    if len(rows) < _FEW_ROWS and data.test is None:
        say(f"{len(rows)} rows are few: none is held out, so nothing says how well it works")
        for section in sections.values():
            del section["held_out"]
    sizes = _sizes(objective, first, data, rows, tokenizer, positions)
    return {
        **sizes,
        "learning_rate": graft_learning_rate(width),
        "seed": seed,
        "evaluate_every": max(1, int(sizes["steps"]) // 4),
        "signals": sections,
        "baselines": {
            "head": {"learning_rate": 3e-3},
            "probe": {"learning_rate": 3e-3},
            "lora": {"learning_rate": 5e-4},
            "separate": {"learning_rate": full_learning_rate(width)},
        },
    }


def trainable_signals(kind: DataKind, signals: Sequence[SignalConfig]) -> list[SignalConfig]:
    """The signals that such data can train. Raises OtterError where there is none."""
    fitting = [s for s in signals if s.kind in _OBJECTIVES[kind]]
    if not fitting:
        kinds = ", ".join(_OBJECTIVES[kind])
        present = ", ".join(f"{s.name} ({s.kind})" for s in signals) or "none"
        raise OtterError(
            f"--{kind} trains signals of kind {kinds}; the graft has: {present}",
            hint=f"graft with --signal {_example_signal(kind)}",
        )
    return fitting


def graft_learning_rate(width: int) -> float:
    """The learning rate of inserted tensors, by the base's hidden width: 1e-3 up to 1,024, and
    less in proportion above, where Adam's steps add up over a wider sum."""
    return float(f"{1e-3 * min(1.0, 1024 / width):.1e}")


def full_learning_rate(width: int) -> float:
    """The rate at which all weights of a model are trained: 3e-4 at width 256, 1e-4 at 768."""
    return float(f"{3e-4 * min(1.0, 256 / width):.1e}")


def _with_chat(data: DataFile, signal: SignalConfig, tokenizer: Any) -> DataFile:
    """With a chat template, prompts with answers are dialogues. Messages always are."""
    if data.chat is not None or not getattr(tokenizer, "chat_template", None):
        return data
    _, source = _table_and_source(_objective(_signal_section(data, signal), signal), signal)
    if source.prompt_column is None:
        return data
    say(
        f"{source.prompt_column!r} is the user's message, in the base's chat template; "
        "--raw trains on plain text"
    )
    return replace(data, chat=True)


def _signal_section(data: DataFile, signal: SignalConfig) -> dict[str, Any]:
    # A copy: YAML would write a list that two sections share as an anchor and a reference.
    source: dict[str, Any] = {"path": str(data.path), **deepcopy(dict(data.columns))}
    if data.chat is not None:
        source["chat"] = data.chat
    if data.limit is not None:
        source["limit"] = data.limit
    tested = {"held_out": 0.1} if data.test is None else {"test": {"path": str(data.test)}}
    section = {**_OBJECTIVES[data.kind][signal.kind], **tested, "train": source}
    return section if data.eos else {**section, "eos": False}


def _sizes(
    objective: Objective,
    signal: SignalConfig,
    data: DataFile,
    rows: Sequence[Any],
    tokenizer: Any,
    positions: int,
) -> dict[str, Any]:
    """max_length, batch_size and steps, by the lengths of the rows."""
    if data.kind == "texts":
        block = min(_BLOCK_TOKENS, positions)
        lengths = list(objective.encode(rows, tokenizer, block).lengths)
        batch = max(1, _TOKENS_PER_STEP // block)
        return {"steps": _steps(batch, block, lengths), "batch_size": batch, "max_length": block}
    # In a large file a sample of the rows gives the lengths.
    part = rows[:: max(1, len(rows) // _LENGTH_SAMPLE)]
    lengths = list(objective.encode(part, tokenizer, max_length=2**31).lengths)
    if not lengths:
        raise OtterError(
            f"{data.path} has no row to train on: the texts of each pair are equal",
            hint=f"otter data check {data.path} counts such rows",
        )
    texts = 2 if data.kind == "pairs" else 1
    longest = sorted(lengths)[math.ceil(0.97 * len(lengths)) - 1]
    max_length = min(32 * math.ceil(longest / 32), positions, _MAX_LENGTH)
    mean = texts * sum(min(length, max_length) for length in lengths) / len(lengths)
    batch = min(max(2 ** round(math.log2(max(1.0, _TOKENS_PER_STEP / mean))), 4), 32)
    steps = _steps(batch, mean, rows)
    sizes: dict[str, Any] = {"steps": steps, "batch_size": batch, "max_length": max_length}
    cut = sum(length > max_length for length in lengths) / len(lengths)
    if cut > 0.05:
        warn(f"{cut:.0%} of the rows are longer than {max_length} tokens and keep their end")
        sizes["allow_truncation"] = round(min(1.0, cut + 0.02), 2)
    return sizes


def _steps(batch: int, tokens: float, rows: Sequence[Any]) -> int:
    """The steps that use the budget of tokens, within a few epochs."""
    steps = min(_TOTAL_TOKENS / (batch * tokens), _MAX_EPOCHS * len(rows) / batch)
    return int(min(max(steps, _STEP_RANGE[0]), _STEP_RANGE[1]))


def _objective(section: Mapping[str, Any], signal: SignalConfig) -> Objective:
    recipe = Recipe.model_validate({"steps": 1, "signals": {signal.name: section}})
    return recipe.signals[signal.name]


def _table_and_source(objective: Objective, signal: SignalConfig) -> tuple[TableLike, DataSource]:
    """The training table, and its source with all columns named."""
    table = objective.train.table(None)
    return table, objective.train.with_default_columns(sample_rows(table), signal)


def _example_signal(kind: DataKind) -> str:
    return {"pairs": "reward", "labels": "toxicity", "texts": "future:3"}[kind]
