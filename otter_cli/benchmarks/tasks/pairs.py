"""Pairwise accuracy: does a reward score the better answer higher, by section (RewardBench, HH)?

Judges are the graft's signal, other grafts and reward models. Nothing is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate
from otter_cli.benchmarks.model_pool import ModelPool
from otter_cli.benchmarks.prompts import RowDrawRecord, row_draw_record
from otter_cli.benchmarks.records import INSERTION
from otter_cli.benchmarks.results import ResultFile, ResultPart
from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.core.console import progress, warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.intervals import Share
from otter_cli.core.jsonlines import JsonLinesWriter
from otter_cli.core.provenance import provenance
from otter_cli.data.chat_template import ChatText, last_text, messages_of
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import JudgedPair, check_identical, read_judged_pairs
from otter_cli.data.splits import LimitedTable
from otter_cli.scorers.load import LoadedGraft
from otter_cli.scorers.scorer import Exchange, Scorer, ScorerRecord, score_all

ALL_SECTIONS = "all"
# Recorded instead of a template.
_CHAT_TEMPLATE = "the chat template"


class SectionAccuracy(ResultPart):
    """`accuracy`: share of pairs whose better answer scores higher; a tie counts half."""

    accuracy: Estimate
    ties: Estimate


class PairSettings(ResultPart):
    file: str
    digest: str
    template: str
    limit: int | None
    cut: int = Field(description="texts longer than the base's window, cut from the left")
    drawn: RowDrawRecord | None = None
    identical: int = Field(0, description="pairs without a difference in tokens, left out")
    ignored: list[str] = Field(default_factory=list, description="columns that are not read")


class PairsResult(ResultFile):
    """`figures`: by judge, then by section; `all` is over every pair."""

    schema_version: int = 1
    benchmark: Literal["pairs"] = "pairs"
    settings: PairSettings
    judges: dict[str, ScorerRecord]
    figures: dict[str, dict[str, SectionAccuracy]]
    provenance: dict[str, Any]

    @property
    def key(self) -> str:
        judges = {name: judge.digest for name, judge in self.judges.items()}
        drawn = self.settings.drawn
        rows = [drawn.lines] if drawn else []
        return sha256_json([self.settings.digest, self.settings.template, judges, *rows])


def load_judges(graft: LoadedGraft, signal: str, others: Mapping[str, Path]) -> dict[str, Scorer]:
    """The graft's signal, and by name of `others` another graft's or a reward model. Raises
    OtterError."""
    from otter_cli.scorers.response_models import RewardModelScorer, SignalScorer

    models = ModelPool(graft, signal)
    judges: dict[str, Scorer] = {INSERTION: SignalScorer(graft, signal)}
    for name, folder in others.items():
        if (folder / MANIFEST).is_file():
            judges[name] = SignalScorer(models.grafted(folder, signal), signal)
        else:
            judges[name] = RewardModelScorer(*models.reward_model(folder))
    return judges


def judge_pairs(
    file: Path,
    graft: LoadedGraft,
    judges: Mapping[str, Scorer],
    *,
    template: str = "{text}",
    chat: bool = False,
    limit: int | None = None,
    limit_seed: int = 0,
) -> tuple[PairsResult, list[dict[str, Any]]]:
    """The result, and a record per pair with every judge's two scores. Messages, and with `chat`
    texts too, are written by each judge's own chat template. Raises OtterError."""
    table = file if limit is None else LimitedTable(file, limit, limit_seed)
    read = read_judged_pairs(table, template=template, tokenizer=graft.tokenizer, chat=chat)
    better, cut = _exchanges(read.pairs, [pair.chosen for pair in read.pairs], graft)
    worse, cut_worse = _exchanges(read.pairs, [pair.rejected for pair in read.pairs], graft)
    # Equal tokens prefer nothing: their scores would differ by rounding alone.
    kept = [
        index
        for index, (one, other) in enumerate(zip(better, worse, strict=True))
        if one.prompt_tokens != other.prompt_tokens
    ]
    identical = len(read.pairs) - len(kept)
    check_identical(identical, len(read.pairs), str(file))
    if cut + cut_worse:
        warn(f"{cut + cut_worse} of {2 * len(read.pairs)} texts are cut to their last tokens")
    pairs = [read.pairs[index] for index in kept]
    better, worse = ([side[index] for index in kept] for side in (better, worse))
    scores = {name: _pair_scores(judge, better, worse) for name, judge in judges.items()}
    sections = np.array([pair.section for pair in pairs])
    result = PairsResult(
        settings=PairSettings(
            file=file.name,
            digest=sha256_file(file),
            template=_CHAT_TEMPLATE if read.chat else template,
            limit=limit,
            cut=cut + cut_worse,
            drawn=row_draw_record(table.drawn) if isinstance(table, LimitedTable) else None,
            identical=identical,
            ignored=read.ignored,
        ),
        judges={name: judge.record for name, judge in judges.items()},
        figures={name: _by_section(sections, values) for name, values in scores.items()},
        provenance=provenance(),
    )
    records = [
        {
            "pair": pair.name,
            "section": pair.section,
            "scores": {name: values[:, index].tolist() for name, values in scores.items()},
        }
        for index, pair in enumerate(pairs)
    ]
    return result, records


def write_pairs(result: PairsResult, records: Sequence[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.jsonl").unlink(missing_ok=True)
    with JsonLinesWriter(folder / "scores.jsonl") as lines:
        for record in records:
            lines.append(record)
    result.write(folder)


def _exchanges(
    pairs: Sequence[JudgedPair], answers: Sequence[str], graft: LoadedGraft
) -> tuple[list[Exchange], int]:
    """Prompts with answers, encoded in one piece as in training, with room for an EOS; and how many
    were cut."""
    encode = Encoder(graft.tokenizer, graft.model.shape.max_positions - 1, eos=False)
    encoded = encode(
        [
            answer if isinstance(answer, ChatText) else pair.prompt + answer
            for pair, answer in zip(pairs, answers, strict=True)
        ]
    )
    read = [ids[:end] for ids, end in zip(encoded.ids, encoded.lengths, strict=True)]
    exchanges = [_exchange(*row) for row in zip(pairs, answers, read, strict=True)]
    return exchanges, encoded.truncation.cut


def _exchange(pair: JudgedPair, answer: str, ids: list[int]) -> Exchange:
    *before, last = messages_of(answer) or [{}]
    response = last_text([last]) if last else answer
    return Exchange(f"pair {pair.name}", pair.prompt, response, tuple(ids), messages=tuple(before))


def _pair_scores(judge: Scorer, better: list[Exchange], worse: list[Exchange]) -> np.ndarray:
    """Scores of better and worse answers, [2, pairs]."""
    (label,) = judge.record.labels
    with progress(2 * len(better), f"pairs by {judge.record.name}", first=2) as advance:
        return np.array([score_all(judge, side, advance)[label] for side in (better, worse)])


def _by_section(sections: np.ndarray, scores: np.ndarray) -> dict[str, SectionAccuracy]:
    """Accuracy by section, in the order of the file, and over all pairs."""
    signs = np.sign(scores[0] - scores[1])
    figures = {}
    for name in dict.fromkeys([*sections.tolist(), ALL_SECTIONS]):
        own = signs if name == ALL_SECTIONS else signs[sections == name]
        figures[name] = SectionAccuracy(
            accuracy=estimate(Share((own + 1) / 2), len(own), f"accuracy on {name}"),
            ties=estimate(Share(own == 0), len(own), f"ties on {name}"),
        )
    return figures
