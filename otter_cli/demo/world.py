"""A seeded writer of short exchanges: somebody asks for a thing, and is answered well or badly.

Tone and fact sit early in an answer and its end is always plain, so what an answer is worth
cannot be read off its last words.
"""

import random
from dataclasses import dataclass
from typing import Literal

from otter_cli.core.digests import sha256_bytes
from otter_cli.core.seeds import derive_seed
from otter_cli.demo import words
from otter_cli.demo.gold import gold_score, toxicity_labels
from otter_cli.demo.words import Tone

Split = Literal["train", "validation", "test"]

CHANCE_OF_REFUSAL = 0.25
CHANCE_OF_MISHEARING = 0.05
"""How often an answer speaks of another thing than the one that was asked for."""

_TONES: tuple[Tone, ...] = ("polite", "neutral", "rude")
_TONE_WEIGHTS = {"warm": (0.38, 0.45, 0.17), "curt": (0.28, 0.45, 0.27)}


@dataclass(frozen=True)
class Scene:
    """Who asks whom for what, where; `prompt` ends where the answer begins."""

    asker: str
    helper: str
    place: str
    thing: str
    manner: str
    prompt: str


class World:
    """All text of one seed and split. The same call gives the same text, in any order of calls.

    Splits share no prompt, whatever their seeds: a prompt's own digest says where it belongs.
    """

    def __init__(self, seed: int, split: Split = "train") -> None:
        self.seed = seed
        self.split = split

    def texts(self, count: int) -> list[str]:
        """Whole exchanges, about half of them rude."""
        return self._exchanges("texts", count)

    def prompts(self, count: int) -> list[str]:
        """Different prompts, each waiting for its answer."""
        return [scene.prompt for scene in self._scenes("prompts", count)]

    def pairs(self, count: int, margin: float = 1.0) -> list[dict[str, str]]:
        """`chosen` and `rejected` exchanges on one prompt, at least `margin` of gold apart."""
        rng = self._random("pairs", "answers")
        return [_pair(scene, margin, rng) for scene in self._scenes("pairs", count)]

    def labelled(self, count: int) -> list[dict[str, str | int]]:
        """Exchanges as `text` with `toxicity`, `insult` and `threat`, each 0 or 1."""
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
    """8 in 10 prompts are for training, 1 for validation, 1 for test."""
    bucket = int(sha256_bytes(prompt.encode())[:8], 16) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def draw_scene(rng: random.Random) -> Scene:
    asker, helper = rng.sample(words.NAMES, 2)
    place, thing = rng.choice(words.PLACES), _thing(rng)
    manner = rng.choice(tuple(words.REQUESTS))
    template = f"{rng.choice(words.SCENES)}\n{{asker}}: {rng.choice(words.REQUESTS[manner])}"
    prompt = f"{template}\n{{helper}}:".format(asker=asker, helper=helper, place=place, thing=thing)
    return Scene(asker, helper, place, thing, manner, prompt)


def answer(scene: Scene, rng: random.Random) -> str:
    """One answer, a space first: three sentences of any tone, then a plain end.

    Each sentence has its own tone. People of one mood would give a language model cause to carry
    that mood to the last word, where the poorest head could read it.
    """
    thing = _thing(rng) if rng.random() < CHANCE_OF_MISHEARING else scene.thing
    answers = words.REFUSALS if rng.random() < CHANCE_OF_REFUSAL else words.ANSWERS
    tones = rng.choices(_TONES, _TONE_WEIGHTS[scene.manner], k=3)
    replies = zip((words.OPENINGS, answers, words.REMARKS), tones, strict=True)
    template = " ".join(["", *(rng.choice(by[tone]) for by, tone in replies)])
    return f"{template} {rng.choice(words.CLOSINGS)}".format(
        asker=scene.asker,
        thing=thing,
        coins=rng.choice(words.NUMBERS),
        hour=rng.choice(words.NUMBERS),
    )


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(words.LOOKS)} {rng.choice(words.OBJECTS)}"


def _pair(scene: Scene, margin: float, rng: random.Random) -> dict[str, str]:
    while True:
        answers = [answer(scene, rng), answer(scene, rng)]
        worse, better = sorted(answers, key=lambda text: gold_score(scene.prompt, text))
        if gold_score(scene.prompt, better) - gold_score(scene.prompt, worse) >= margin:
            return {"chosen": scene.prompt + better, "rejected": scene.prompt + worse}
