"""Pairwise accuracy: does a reward put the better answer first, by section (RewardBench, HH)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from otter_cli.benchmarks.estimates import Estimate, estimate
from otter_cli.benchmarks.result_file import Part, ResultFile
from otter_cli.benchmarks.scorers import Exchange, Scorer, ScorerRecord, score_all
from otter_cli.core.console import progress, warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.intervals import mean
from otter_cli.core.jsonlines import JsonLines
from otter_cli.core.provenance import provenance
from otter_cli.data.encoding import Encoder
from otter_cli.data.judged_pairs import JudgedPair, read_judged_pairs

if TYPE_CHECKING:
    from otter_cli.benchmarks.models import Grafted

ALL = "all"


class Judgement(Part):
    """A tie counts half in `accuracy`."""

    accuracy: Estimate
    ties: Estimate


class PairSettings(Part):
    file: str
    digest: str
    template: str
    limit: int | None
    cut: int = Field(description="texts longer than the base's window, cut from the left")


class PairsResult(ResultFile):
    """`figures`: by judge, then by section; `all` is over every pair."""

    schema_version: int = 1
    benchmark: Literal["pairs"] = "pairs"
    settings: PairSettings
    judges: dict[str, ScorerRecord]
    figures: dict[str, dict[str, Judgement]]
    provenance: dict[str, Any]

    @property
    def key(self) -> str:
        judges = {name: judge.digest for name, judge in self.judges.items()}
        return sha256_json([self.settings.digest, self.settings.template, judges])


def judge_pairs(
    file: Path,
    graft: Grafted,
    judges: Mapping[str, Scorer],
    *,
    template: str = "{text}",
    limit: int | None = None,
) -> tuple[PairsResult, list[dict[str, Any]]]:
    """The result, and a record a pair with every judge's two scores. Raises OtterError."""
    pairs = read_judged_pairs(file, template=template, limit=limit)
    better, cut = _exchanges(pairs, [pair.chosen for pair in pairs], graft)
    worse, more = _exchanges(pairs, [pair.rejected for pair in pairs], graft)
    if cut + more:
        warn(f"{cut + more} of {2 * len(pairs)} texts are cut to their last tokens")
    scores = {name: _scores(judge, better, worse) for name, judge in judges.items()}
    sections = [pair.section for pair in pairs]
    result = PairsResult(
        settings=PairSettings(
            file=file.name, digest=sha256_file(file), template=template, limit=limit, cut=cut + more
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
    with JsonLines(folder / "scores.jsonl") as lines:
        for record in records:
            lines.append(record)
    result.write(folder)


def _exchanges(
    pairs: Sequence[JudgedPair], answers: Sequence[str], graft: Grafted
) -> tuple[list[Exchange], int]:
    """Texts as they were trained on: one tokenisation of the whole, room left for EOS."""
    encode = Encoder(graft.tokenizer, graft.model.shape.max_positions - 1, eos=False)
    texts = [pair.prompt + answer for pair, answer in zip(pairs, answers, strict=True)]
    encoded = encode(texts, "pair")
    exchanges = [
        Exchange(f"pair {pair.name}", pair.prompt, answer, tuple(ids))
        for pair, answer, ids in zip(pairs, answers, encoded.ids, strict=True)
    ]
    return exchanges, encoded.truncation.cut


def _scores(
    judge: Scorer, better: list[Exchange], worse: list[Exchange]
) -> tuple[list[float], list[float]]:
    (label,) = judge.record.labels
    with progress(2 * len(better), f"pairs by {judge.record.name}") as advance:
        one = score_all(judge, better, advance)[label]
        return one, score_all(judge, worse, advance)[label]


def _by_section(
    sections: Sequence[str], better: Sequence[float], worse: Sequence[float]
) -> dict[str, Judgement]:
    signs = np.sign(np.array(better) - np.array(worse))
    names = list(dict.fromkeys(sections))
    found = {}
    for name in [*names, ALL] if names != [ALL] else [ALL]:
        own = signs if name == ALL else signs[np.array(sections) == name]
        found[name] = Judgement(
            accuracy=estimate(mean((own + 1) / 2), len(own), f"accuracy on {name}"),
            ties=estimate(mean((own == 0).astype(float)), len(own), f"ties on {name}"),
        )
    return found
