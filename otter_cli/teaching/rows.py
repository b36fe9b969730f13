"""From prompts and a scorer to labelled rows that a recipe trains on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.console import say, warn
from otter_cli.core.digests import sha256_bytes
from otter_cli.core.errors import OtterError
from otter_cli.data.encoding import state_key
from otter_cli.data.prompts import Prompt
from otter_cli.scorers.text_scorer import TextScorer, load_text_scorer
from otter_cli.teaching.continuations import (
    ContinuationSettings,
    teaching_prompts,
    write_continuations,
)
from otter_cli.training.objectives.continuations import StoredRecord, complete_records

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM


_TEXTS_AT_ONCE = 32
STORE = Path("training", "taught")


@dataclass(frozen=True)
class TeachingSettings:
    """`scorer`: see `load_text_scorer`. `reads`: the base's continuation alone, or the prompt with
    it. `chat`: prompts are a user's messages, in the base's chat template."""

    scorer: str
    prompts: Path
    chat: bool
    continuations: ContinuationSettings = field(default_factory=ContinuationSettings)
    reads: Literal["continuation", "text"] = "continuation"


@dataclass(frozen=True)
class LabelledRows:
    """Rows on disk, the columns of their labels, and a record of how they were made."""

    path: Path
    labels: tuple[str, ...]
    record: dict[str, Any]


def teach(
    folder: Path,
    model: OtterForCausalLM,
    tokenizer: Any,
    teaching: TeachingSettings,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
) -> LabelledRows:
    """The base of a graft continues the prompts, the scorer scores each text once, and one row a
    text is written below FOLDER/training/taught. Stored texts and scores are used again. `labels`:
    which of the scorer's numbers (default: the first). Raises OtterError."""
    scorer = load_text_scorer(teaching.scorer, device=device)
    names = tuple(labels or scorer.names[:1])
    columns = scorer.indices_of(names)
    _check_names(names, teaching)
    prompts = teaching_prompts(
        teaching.prompts,
        model,
        tokenizer,
        chat=teaching.chat,
        new_tokens=teaching.continuations.tokens,
    )
    base = {n: f.sha256 for n, f in model.manifest.base.identity().items()}
    store = folder / STORE
    texts = write_continuations(
        model, [p.ids for p in prompts], teaching.continuations, base, store
    )
    rows = [
        (p.prompt, p.text, tokenizer.decode(tokens, skip_special_tokens=True))
        for p in prompts
        for tokens in texts[state_key(p.ids)]
    ]
    rows = [row for row in rows if row[2].strip()]
    if not rows:
        raise OtterError(
            f"the base wrote nothing after the {len(prompts)} prompts of {teaching.prompts}",
            hint="give other prompts, or more --new-tokens or --samples",
        )
    whole = teaching.reads == "text"
    read = [start + written if whole else written for _, start, written in rows]
    scores = label_texts(scorer, read, store)
    numbers = [[scores[text][column] for column in columns] for text in read]
    scaled, scales = _scale_to_unit(numbers, names)
    _print_scales(scales)
    lines = [
        json.dumps(
            {
                **_text_columns(prompt, start, written, teaching.chat),
                **dict(zip(names, values, strict=True)),
            }
        )
        for (prompt, start, written), values in zip(rows, scaled, strict=True)
    ]
    content = "".join(f"{line}\n" for line in lines)
    path = store / f"rows-{sha256_bytes(content.encode())[:16]}.jsonl"
    write_text(path, content)
    record = {
        "teacher": teaching.scorer,
        "digest": scorer.digest,
        "prompts": len(prompts),
        "texts": len(rows),
        "means": {n: sum(v[i] for v in numbers) / len(numbers) for i, n in enumerate(names)},
        "scales": scales,
    }
    write_json(path.with_suffix(".json"), record)
    unread = [name for name in scorer.names if name not in names]
    say(
        f"{len(rows)} texts of the base, labelled by {', '.join(names)} of {teaching.scorer}"
        + (f" (it gives {', '.join(unread)} too: --label)" if unread else "")
        + f": {path}"
    )
    return LabelledRows(path, names, record)


def label_texts(scorer: TextScorer, texts: Sequence[str], store: Path) -> dict[str, list[float]]:
    """The scorer's numbers by text. Each text is scored once, and the numbers are stored."""

    def compute(missing: list[str]) -> Iterator[StoredRecord]:
        for start in range(0, len(missing), _TEXTS_AT_ONCE):
            part = missing[start : start + _TEXTS_AT_ONCE]
            for text, scores in zip(part, scorer.score(part), strict=True):
                _check_finite(scores, text)
                yield {"text": text, "scores": scores}

    path = store / f"labels-{scorer.digest[:16]}.jsonl"
    label, done = "the teacher labels", "texts are labelled"
    records = complete_records(path, "text", texts, compute, label=label, done=done)
    return {text: record["scores"] for text, record in records.items()}


def _check_names(names: Sequence[str], teaching: TeachingSettings) -> None:
    """Raises OtterError for a score with the name of the column of texts."""
    text = "messages" if teaching.chat else "text"
    if text in names:
        raise OtterError(
            f"the teacher {teaching.scorer} calls a score {text!r}, as the column of texts is",
            hint="give the score another name",
        )


def _check_finite(scores: Sequence[float], text: str) -> None:
    if not all(map(math.isfinite, scores)):
        raise OtterError(
            f"the teacher gives {text[:60]!r} a score that is not finite",
            hint="check the teacher's weights; labels so far are kept",
        )


def _print_scales(scales: Mapping[str, Sequence[float]]) -> None:
    """A signal learns the mapped numbers, so the user must know the ranges."""
    for name, (low, high) in scales.items():
        if low == high:
            warn(f"the teacher gives every text {low:g} as {name}: there is nothing to learn")
        elif (low, high) != (0, 1):
            say(f"{name} from {low:g} to {high:g} is mapped to a label from 0 to 1")


def _text_columns(prompt: Prompt, start: str, written: str, chat: bool) -> dict[str, Any]:
    """The columns of a row. A dialogue keeps its messages, so that it is tokenised as such."""
    if not chat:
        return {"text": start + written}
    messages = list(prompt.messages) or [{"role": "user", "content": prompt.text}]
    return {"messages": [*messages, {"role": "assistant", "content": written}]}


def _scale_to_unit(
    numbers: Sequence[Sequence[float]], names: Sequence[str]
) -> tuple[list[list[float]], dict[str, list[float]]]:
    """The numbers on a scale from 0 to 1, and for each name the range that was mapped to it.

    Numbers that lie between 0 and 1 already stay. Others, for example of reward models, are mapped
    linearly, which keeps their order."""
    ranges: dict[str, list[float]] = {}
    scaled = [list(row) for row in numbers]
    for column, name in enumerate(names):
        values = [row[column] for row in numbers]
        low, high = min(values), max(values)
        if low >= 0 and high <= 1:
            ranges[name] = [0.0, 1.0]
            continue
        ranges[name] = [low, high]
        for row in scaled:
            row[column] = (row[column] - low) / (high - low) if high > low else 0.5
    return scaled, ranges
