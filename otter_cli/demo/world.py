"""A seeded writer of short exchanges, in which a person asks for a thing and gets an answer.

`world.yaml` holds the phrases. `gold_score` scores answers by their words. Tone and fact come early
in an answer, and its end is always neutral, so that the last words do not reveal the score.
`write_world` writes the files that recipes and benchmarks read.
"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from otter_cli.core.atomic import staged_folder, write_text
from otter_cli.core.digests import sha256_bytes, sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.core.strict_files import read_yaml

Tone = Literal["polite", "neutral", "rude"]

_PHRASES_FILE = Path(__file__).with_name("world.yaml")
_PHRASES = read_yaml(_PHRASES_FILE, hint="install otter again")

Phrases = list[str]
Replies = dict[Tone, Phrases]

NAMES: Final[Phrases] = _PHRASES["names"]
PLACES: Final[Phrases] = _PHRASES["places"]
LOOKS: Final[Phrases] = _PHRASES["looks"]
OBJECTS: Final[Phrases] = _PHRASES["objects"]
NUMBERS: Final[Phrases] = _PHRASES["numbers"]
SCENES: Final[Phrases] = _PHRASES["scenes"]
REQUESTS: Final[dict[str, Phrases]] = _PHRASES["requests"]
OPENINGS: Final[Replies] = _PHRASES["openings"]
ANSWERS: Final[Replies] = _PHRASES["answers"]
REFUSALS: Final[Replies] = _PHRASES["refusals"]
REMARKS: Final[Replies] = _PHRASES["remarks"]
CLOSINGS: Final[Phrases] = _PHRASES["closings"]

# The gold rule finds the tone of a sentence by these words only.
INSULTS: Final = (
    "silly goose", "idiot", "lazy fool", "stupid", "moron", "ugly toad", "blind bat", "smell like",
)  # fmt: skip
THREATS: Final = ("kick you", "break your", "choke on")
DISMISSALS: Final = ("shut up", "get lost")
COURTESIES: Final = (
    "welcome", "glad", "pleasure", "thank you", "dear", "please", "enjoy", "happy", "sorry",
)  # fmt: skip
REFUSAL_MARKERS: Final = ("there is no", "i sold", "is gone")


_THING_PATTERN = re.compile(rf"\b(?:{'|'.join(LOOKS)}) (?:{'|'.join(OBJECTS)})\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_RUDE = INSULTS + THREATS + DISMISSALS
_MAX_COURTESIES = 3


def gold_score(prompt: str, response: str) -> float:
    """The count of polite sentences (at most three) minus rude ones, plus a score of the thing.

    That score is 1 if the requested thing is offered, -1 if it is refused or another thing is
    named, and else 0. A repeated sentence counts once. Text after the answer's line is ignored.
    Raises OtterError if `prompt` asks for nothing that this world knows.
    """
    sentences = set(_SENTENCE_END.split(response.strip().split("\n")[0]))
    rude, polite = sum(map(is_rude, sentences)), sum(map(is_polite, sentences))
    return float(min(polite, _MAX_COURTESIES) - rude + _thing_score(prompt, sentences))


def gold_rule_digest() -> str:
    """The identity of the gold rule: a digest of its code and of the phrases."""
    return sha256_json([sha256_file(Path(__file__)), sha256_file(_PHRASES_FILE)])


def is_rude(text: str) -> bool:
    return _contains_any(text, _RUDE)


def is_polite(text: str) -> bool:
    """Whether the text holds a courtesy and nothing rude."""
    return _contains_any(text, COURTESIES) and not is_rude(text)


def toxicity_labels(text: str) -> dict[str, int]:
    """0 or 1 for each of `toxicity` (anything rude), `insult` and `threat`."""
    return {
        "toxicity": int(is_rude(text)),
        "insult": int(_contains_any(text, INSULTS)),
        "threat": int(_contains_any(text, THREATS)),
    }


def split_exchange(text: str) -> tuple[str, str]:
    """The prompt and the answer of an exchange. The answer starts with a space."""
    lines = text.split("\n")
    if len(lines) < 3 or ": " not in lines[2]:
        raise OtterError(
            f"not an exchange of the synthetic world: {text[:40]!r}",
            hint="expected a scene, a request and an answer, one per line",
        )
    prompt = text[: text.index(":", len(lines[0]) + len(lines[1]) + 2) + 1]
    return prompt, text[len(prompt) :]


def _thing_score(prompt: str, sentences: set[str]) -> int:
    requested = _THING_PATTERN.findall(prompt)
    if not requested:
        raise OtterError(
            f"the prompt asks for nothing that the synthetic world knows: {prompt[:60]!r}",
            hint="the gold rule scores answers to this world's prompts only",
        )
    with_thing = [sentence for sentence in sentences if _THING_PATTERN.search(sentence)]
    for sentence in with_thing:
        if requested[-1] in sentence and not _contains_any(sentence, REFUSAL_MARKERS):
            return 1
    return -1 if with_thing else 0


def _contains_any(text: str, markers: tuple[str, ...]) -> bool:
    lowered = text.lower()
    return any(marker in lowered for marker in markers)


Split = Literal["train", "validation", "test"]

CHANCE_OF_REFUSAL = 0.25
CHANCE_OF_MISHEARING = 0.05
"""How often an answer names another thing than the requested one."""

_TONES: tuple[Tone, ...] = ("polite", "neutral", "rude")
_TONE_WEIGHTS = {"warm": (0.38, 0.45, 0.17), "curt": (0.28, 0.45, 0.27)}


@dataclass(frozen=True)
class Scene:
    """One request. `prompt` ends where the answer begins."""

    asker: str
    helper: str
    place: str
    thing: str
    manner: str
    prompt: str


class World:
    """All text of one seed and split. The same call gives the same text, in any order of calls.

    Splits share no prompt, whatever their seeds: the digest of a prompt decides its split.
    """

    def __init__(self, seed: int, split: Split = "train") -> None:
        self.seed = seed
        self.split = split

    def texts(self, count: int) -> list[str]:
        """Exchanges, about half of them rude."""
        return self._exchanges("texts", count)

    def prompts(self, count: int) -> list[str]:
        """Distinct prompts without answers."""
        return [scene.prompt for scene in self._scenes("prompts", count)]

    def pairs(self, count: int, margin: float = 1.0) -> list[dict[str, str]]:
        """`chosen` and `rejected` exchanges on one prompt, whose gold scores differ by at least
        `margin`."""
        rng = self._random("pairs", "answers")
        return [_preference_pair(scene, margin, rng) for scene in self._scenes("pairs", count)]

    def labelled(self, count: int) -> list[dict[str, str | int]]:
        """Exchanges as `text`, with the labels of `toxicity_labels`."""
        texts = self._exchanges("labelled", count)
        return [{"text": text, **toxicity_labels(text)} for text in texts]

    def _exchanges(self, purpose: str, count: int) -> list[str]:
        rng = self._random(purpose, "answers")
        return [scene.prompt + answer(scene, rng) for scene in self._scenes(purpose, count)]

    def _scenes(self, purpose: str, count: int) -> list[Scene]:
        rng = self._random(purpose, "scenes")
        scenes: dict[str, Scene] = {}
        while len(scenes) < count:
            scene = draw_scene(rng)
            if split_of(scene.prompt) == self.split:
                scenes[scene.prompt] = scene
        return list(scenes.values())

    def _random(self, *purpose: str) -> random.Random:
        return random.Random(derive_seed("world", self.seed, self.split, *purpose))


def split_of(prompt: str) -> Split:
    """The split of a prompt: 8 in 10 are for training, 1 for validation, 1 for test."""
    bucket = int(sha256_bytes(prompt.encode())[:8], 16) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def draw_scene(rng: random.Random) -> Scene:
    asker, helper = rng.sample(NAMES, 2)
    place, thing = rng.choice(PLACES), _draw_thing(rng)
    manner = rng.choice(tuple(REQUESTS))
    template = f"{rng.choice(SCENES)}\n{{asker}}: {rng.choice(REQUESTS[manner])}"
    prompt = f"{template}\n{{helper}}:".format(asker=asker, helper=helper, place=place, thing=thing)
    return Scene(asker, helper, place, thing, manner, prompt)


def answer(scene: Scene, rng: random.Random) -> str:
    """One answer, with a leading space: three sentences of any tone, then a neutral end.

    Each sentence has its own tone. Otherwise a language model could carry the tone to the last
    word, and any head could read it there.
    """
    thing = _draw_thing(rng) if rng.random() < CHANCE_OF_MISHEARING else scene.thing
    answers = REFUSALS if rng.random() < CHANCE_OF_REFUSAL else ANSWERS
    tones = rng.choices(_TONES, _TONE_WEIGHTS[scene.manner], k=3)
    replies = zip((OPENINGS, answers, REMARKS), tones, strict=True)
    template = " ".join(["", *(rng.choice(by[tone]) for by, tone in replies)])
    return f"{template} {rng.choice(CLOSINGS)}".format(
        asker=scene.asker,
        thing=thing,
        coins=rng.choice(NUMBERS),
        hour=rng.choice(NUMBERS),
    )


def _draw_thing(rng: random.Random) -> str:
    return f"{rng.choice(LOOKS)} {rng.choice(OBJECTS)}"


def _preference_pair(scene: Scene, margin: float, rng: random.Random) -> dict[str, str]:
    while True:
        answers = [answer(scene, rng), answer(scene, rng)]
        worse, better = sorted(answers, key=lambda text: gold_score(scene.prompt, text))
        if gold_score(scene.prompt, better) - gold_score(scene.prompt, worse) >= margin:
            return {"chosen": scene.prompt + better, "rejected": scene.prompt + worse}


TRAIN_ROWS, TEST_ROWS = 4_000, 500


def write_world(
    out: Path, *, seed: int, train_rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS
) -> Path:
    """Writes `preference`, `toxicity` and `text`, each as `.train.jsonl` and `.test.jsonl`, and the
    test prompts as `prompts.jsonl`. Raises OtterError if `out` exists."""
    train, test = World(seed, "train"), World(seed, "test")
    with staged_folder(out, sources=()) as folder:
        for world, name, rows in ((train, "train", train_rows), (test, "test", test_rows)):
            _write_rows(folder / f"preference.{name}.jsonl", world.pairs(rows))
            _write_rows(folder / f"toxicity.{name}.jsonl", world.labelled(rows))
            _write_rows(
                folder / f"text.{name}.jsonl", [{"text": text} for text in world.texts(rows)]
            )
        _write_rows(
            folder / "prompts.jsonl", [{"prompt": prompt} for prompt in test.prompts(test_rows)]
        )
    return out


def _write_rows(path: Path, rows: list[dict[str, str]] | list[dict[str, str | int]]) -> None:
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
