"""What a scorer of responses is, and `score_all`, which checks every score.

There must be one finite score for each label and response before any of them is used."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from otter_cli.core.console import Advance
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictRecord
from otter_cli.data.chat_template import Messages, last_text

Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Exchange:
    """A prompt and its response, as texts and as the base's tokens. `name` is for error messages.
    `messages`: the dialogue that the response answers; `prompt` is then what the base's template
    makes of it."""

    name: str
    prompt: str
    response: str
    prompt_tokens: tuple[int, ...] = ()
    response_tokens: tuple[int, ...] = ()
    messages: Messages = ()

    @property
    def question(self) -> str:
        """The prompt without the text that a template adds."""
        return last_text(list(self.messages)) if self.messages else self.prompt


class ScorerRecord(StrictRecord):
    """Which scorer gave a number. `digest`: of its weights, or of the rule's name and version."""

    name: str
    kind: str
    digest: str
    labels: list[str]


class Scorer(Protocol):
    """`score` gives one number for each of `record.labels` and each exchange, in order."""

    @property
    def record(self) -> ScorerRecord: ...

    def score(self, exchanges: Sequence[Exchange]) -> Scores: ...


class RuleScorer:
    """A Python rule as a scorer: `rule(prompt, response)`. Another rule needs another `digest`."""

    def __init__(
        self, name: str, rule: Callable[[str, str], float], *, digest: str, label: str = "reward"
    ) -> None:
        self.record = ScorerRecord(name=name, kind="rule", digest=digest, labels=[label])
        self.rule, self.label = rule, label

    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        return {self.label: [float(self.rule(e.prompt, e.response)) for e in exchanges]}


def score_all(
    scorer: Scorer, exchanges: Sequence[Exchange], advance: Advance, *, batch: int = 32
) -> dict[str, list[float]]:
    """Every score of every exchange, by label. Raises OtterError where the scorer fails, leaves a
    label out, or gives a wrong number of scores or one that is not finite."""
    all_scores: dict[str, list[float]] = {label: [] for label in scorer.record.labels}
    for start in range(0, len(exchanges), batch):
        part = exchanges[start : start + batch]
        scores = _call_scorer(scorer, part)
        for label, values in all_scores.items():
            values.extend(_checked_scores(scorer.record.name, label, scores, part))
        advance(len(part))
    return all_scores


def _call_scorer(scorer: Scorer, part: Sequence[Exchange]) -> Scores:
    try:
        return scorer.score(part)
    except OtterError:
        raise
    except Exception as error:
        raise OtterError(
            f"scorer {scorer.record.name} failed on {part[0].name}: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            hint="no number is reported without its scorer; the samples are kept, run it again",
        ) from error


def _checked_scores(name: str, label: str, scores: Scores, part: Sequence[Exchange]) -> list[float]:
    if label not in scores:
        raise OtterError(
            f"scorer {name} gave no {label!r}, only {', '.join(scores) or 'nothing'}",
            hint="use a scorer that knows the label",
        )
    values = [float(value) for value in scores[label]]
    if len(values) != len(part):
        raise OtterError(
            f"scorer {name} gave {len(values)} scores of {label!r} for {len(part)} texts, "
            f"from {part[0].name} on",
            hint="scores can't be matched to texts; the samples are kept",
        )
    for value, exchange in zip(values, part, strict=True):
        if not math.isfinite(value):
            raise OtterError(
                f"scorer {name} gave {value} for {label!r} of {exchange.name}",
                hint="no score is replaced by 0: look at that text and the scorer",
            )
    return values
