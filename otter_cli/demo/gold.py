"""What an answer of the synthetic world is worth, by rule: no model, and no guide of anything."""

import re

from otter_cli.core.errors import OtterError
from otter_cli.demo import words

_THING = re.compile(rf"\b(?:{'|'.join(words.LOOKS)}) (?:{'|'.join(words.OBJECTS)})\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_RUDE = words.INSULTS + words.THREATS + words.DISMISSALS
_MOST_COURTESIES = 3


def gold_score(prompt: str, response: str) -> float:
    """Polite sentences (three at most) less rude ones, and 1 more or less for the thing.

    1 more when the thing asked for is offered, 1 less when it is refused or another is named. A
    sentence said twice counts once, and talk after the answer's line not at all. OtterError when
    `prompt` asks for nothing that this world knows.
    """
    sentences = set(_SENTENCE_END.split(response.strip().split("\n")[0]))
    rude, polite = sum(map(is_rude, sentences)), sum(map(is_polite, sentences))
    return float(min(polite, _MOST_COURTESIES) - rude + _thing_score(prompt, sentences))


def is_rude(text: str) -> bool:
    return _holds(text, _RUDE)


def is_polite(text: str) -> bool:
    """Whether there is a courtesy and nothing rude beside it."""
    return _holds(text, words.COURTESIES) and not is_rude(text)


def toxicity_labels(text: str) -> dict[str, int]:
    """`toxicity` (anything rude), `insult` and `threat`, each 0 or 1."""
    return {
        "toxicity": int(is_rude(text)),
        "insult": int(_holds(text, words.INSULTS)),
        "threat": int(_holds(text, words.THREATS)),
    }


def split_exchange(text: str) -> tuple[str, str]:
    """Prompt and answer of a whole exchange; the answer starts with a space."""
    lines = text.split("\n")
    if len(lines) < 3 or ": " not in lines[2]:
        raise OtterError(
            f"no exchange of the synthetic world: {text[:40]!r}",
            hint="expected a scene, a request and an answer, one a line",
        )
    prompt = text[: text.index(":", len(lines[0]) + len(lines[1]) + 2) + 1]
    return prompt, text[len(prompt) :]


def _thing_score(prompt: str, sentences: set[str]) -> int:
    asked = _THING.findall(prompt)
    if not asked:
        raise OtterError(
            f"the prompt asks for nothing that the synthetic world knows: {prompt[:60]!r}",
            hint="the gold rule scores answers to this world's prompts only",
        )
    naming = [sentence for sentence in sentences if _THING.search(sentence)]
    if any(asked[-1] in text and not _holds(text, words.REFUSING) for text in naming):
        return 1
    return -1 if naming else 0


def _holds(text: str, markers: tuple[str, ...]) -> bool:
    lowered = text.lower()
    return any(marker in lowered for marker in markers)
