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
from otter_cli.core.intervals import mean
from otter_cli.core.jsonlines import JsonLinesWriter
from otter_cli.core.provenance import provenance
from otter_cli.data.chat_template import ChatText, last_text, messages_of
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import JudgedPair, check_identical, read_judged_pairs
from otter_cli.data.splits import LimitedTable
from otter_cli.scorers.load import LoadedGraft
from otter_cli.scorers.scorer import Exchange, Scorer, ScorerRecord, score_all


def load_judges(graft: LoadedGraft, signal: str, others: Mapping[str, Path]) -> dict[str, Scorer]:
    """The graft's signal, and other folders: grafts by theirs, reward models. Raises OtterError."""
    from otter_cli.scorers.response_models import RewardModelScorer, SignalScorer

    models = ModelPool(graft, signal)
    found: dict[str, Scorer] = {INSERTION: SignalScorer(graft, signal)}
    for name, folder in others.items():
        if (folder / MANIFEST).is_file():
            found[name] = SignalScorer(models.grafted(folder, signal), signal)
        else:
            found[name] = RewardModelScorer(*models.reward_model(folder))
    return found


ALL_SECTIONS = "all"
# In place of a template's text.
_CHAT_TEMPLATE = "the chat template"


class SectionAccuracy(ResultPart):
    """A tie counts half in `accuracy`."""

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
    """The result, and a record a pair with every judge's two scores; of messages, and with
    `chat` of texts too, as each judge's own chat template writes them. Raises OtterError."""
    table = file if limit is None else LimitedTable(file, limit, limit_seed)
    found = read_judged_pairs(table, template=template, tokenizer=graft.tokenizer, chat=chat)
    pairs, better, worse, cut = _distinguishable_pairs(found.pairs, graft, file)
    if cut:
        warn(f"{cut} of {2 * len(found.pairs)} texts are cut to their last tokens")
    scores = {name: _pair_scores(judge, better, worse) for name, judge in judges.items()}
    sections = [pair.section for pair in pairs]
    result = PairsResult(
        settings=PairSettings(
            file=file.name,
            digest=sha256_file(file),
            template=_CHAT_TEMPLATE if found.chat else template,
            limit=limit,
            cut=cut,
            drawn=row_draw_record(table.drawn) if isinstance(table, LimitedTable) else None,
            identical=len(found.pairs) - len(pairs),
            ignored=found.ignored,
        ),
        judges={name: judge.record for name, judge in judges.items()},
        figures={name: _by_section(sections, *both) for name, both in scores.items()},
        provenance=provenance(),
    )
    records = [
        {
            "pair": pair.name,
            "section": pair.section,
            "scores": {name: [both[0][i], both[1][i]] for name, both in scores.items()},
        }
        for i, pair in enumerate(pairs)
    ]
    return result, records


def write_pairs(result: PairsResult, records: Sequence[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.jsonl").unlink(missing_ok=True)
    with JsonLinesWriter(folder / "scores.jsonl") as lines:
        for record in records:
            lines.append(record)
    result.write(folder)


def _distinguishable_pairs(
    pairs: Sequence[JudgedPair], graft: LoadedGraft, file: Path
) -> tuple[list[JudgedPair], list[Exchange], list[Exchange], int]:
    """The pairs whose texts differ in the tokens that a judge reads, both texts of each, and how
    many texts were cut. Others prefer nothing: their scores differ by rounding alone."""
    better, cut = _exchanges(pairs, [pair.chosen for pair in pairs], graft)
    worse, more = _exchanges(pairs, [pair.rejected for pair in pairs], graft)
    alike = [
        one.prompt_tokens == other.prompt_tokens for one, other in zip(better, worse, strict=True)
    ]
    check_identical(sum(alike), len(pairs), str(file))
    kept = [index for index, same in enumerate(alike) if not same]
    return [pairs[i] for i in kept], [better[i] for i in kept], [worse[i] for i in kept], cut + more


def _exchanges(
    pairs: Sequence[JudgedPair], answers: Sequence[str], graft: LoadedGraft
) -> tuple[list[Exchange], int]:
    """Texts as they were trained on: one tokenisation of the whole, room left for EOS."""
    encode = Encoder(graft.tokenizer, graft.model.shape.max_positions - 1, eos=False)
    encoded = encode(
        [_full_text(pair, answer) for pair, answer in zip(pairs, answers, strict=True)]
    )
    read = [ids[:end] for ids, end in zip(encoded.ids, encoded.lengths, strict=True)]
    exchanges = [
        _exchange(pair, answer, ids) for pair, answer, ids in zip(pairs, answers, read, strict=True)
    ]
    return exchanges, encoded.truncation.cut


def _full_text(pair: JudgedPair, answer: str) -> str:
    return answer if isinstance(answer, ChatText) else pair.prompt + answer


def _exchange(pair: JudgedPair, answer: str, ids: list[int]) -> Exchange:
    *before, last = messages_of(answer) or [{}]
    said = last_text([last]) if last else answer
    return Exchange(f"pair {pair.name}", pair.prompt, said, tuple(ids), messages=tuple(before))


def _pair_scores(
    judge: Scorer, better: list[Exchange], worse: list[Exchange]
) -> tuple[list[float], list[float]]:
    (label,) = judge.record.labels
    with progress(2 * len(better), f"pairs by {judge.record.name}") as advance:
        one = score_all(judge, better, advance)[label]
        return one, score_all(judge, worse, advance)[label]


def _by_section(
    sections: Sequence[str], better: Sequence[float], worse: Sequence[float]
) -> dict[str, SectionAccuracy]:
    signs = np.sign(np.array(better) - np.array(worse))
    names = list(dict.fromkeys(sections))
    found = {}
    for name in [*names, ALL_SECTIONS] if names != [ALL_SECTIONS] else [ALL_SECTIONS]:
        own = signs if name == ALL_SECTIONS else signs[np.array(sections) == name]
        found[name] = SectionAccuracy(
            accuracy=estimate(mean((own + 1) / 2), len(own), f"accuracy on {name}"),
            ties=estimate(mean((own == 0).astype(float)), len(own), f"ties on {name}"),
        )
    return found
