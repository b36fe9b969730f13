"""From what `otter generate` was asked for to records of texts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from otter_cli.cli.generate_prompts import encoded_of
from otter_cli.cli.generated import Told, labels_of, record_of
from otter_cli.core.console import progress, say, warn
from otter_cli.core.errors import OtterError
from otter_cli.decoding import (
    FutureDrafter,
    Gate,
    Generation,
    Guide,
    PromptLookup,
    Sampling,
    SignalBound,
    SignalGuide,
    Stops,
    TreeShape,
    VocabularyGuide,
    both_paths,
    generate,
    learnt_tree,
)
from otter_cli.decoding.drafts import Drafter
from otter_cli.decoding.scores import check_signal
from otter_cli.model import OtterForCausalLM

_LEARNT = "learnt:"
# More of them would take longer than what the better tree saves.
_TEXTS_TO_LEARN_FROM = 8


@dataclass(frozen=True)
class Asked:
    """What the command line says, by its options."""

    sampling: Sampling
    guides: tuple[str, ...]
    strength: float
    candidates: int
    label: str | None
    gate: Gate | None
    stops: tuple[str, ...]
    rejects: tuple[SignalBound, ...]
    signals: tuple[str, ...]
    draft: str | None
    tree: str | None
    typical: bool
    exact: bool
    chat: bool
    batch: int
    stream: bool | None

    def check(self) -> None:
        """Raises OtterError for options that go with nothing."""
        if self.batch < 1:
            raise OtterError(f"--batch is {self.batch}", hint="at least 1")
        if self.tree is not None and self.draft in (None, "prompt-lookup"):
            raise OtterError("--tree needs --draft with a future signal", hint="--draft future")
        if self.typical and self.draft is None:
            raise OtterError("--typical accepts drafts, and there are none", hint="--draft future")


class Generating:
    """A loaded graft with what is asked of it."""

    def __init__(self, asked: Asked, folder: Path, base: Path | None, device: str) -> None:
        self.asked = asked
        self.model = OtterForCausalLM.from_pretrained(folder, base=base, device=device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base or folder, local_files_only=True)
        configs = self.model.signal_configs
        scoring = [name for name, config in configs.items() if config.kind != "future"]
        self.shown = list(asked.signals) or scoring
        self.guides = [self._guide(text) for text in asked.guides]

    def run(self, prompts: list[str]) -> list[dict[str, Any]]:
        """A record of each prompt's text, in order."""
        self._warn_untrained()
        encoded = [encoded_of(self.tokenizer, text, self.asked.chat) for text in prompts]
        streams = self.asked.stream
        if streams is None:
            streams = len(prompts) == 1 and sys.stdout.isatty()
        batch = 1 if streams or self.asked.exact else self.asked.batch
        drafter = self._drafter(encoded)
        labels, records = labels_of(self.model, self.shown), []
        with progress(0 if streams else len(prompts), "generating") as advance:
            for start in range(0, len(prompts), batch):
                part = encoded[start : start + batch]
                told = Told(self.tokenizer, prompts[start], part[0]) if streams else None
                rows = self._generate(part, drafter, told)
                for text, ids, row in zip(prompts[start:], part, rows, strict=False):
                    records.append(record_of(text, ids, row, self.tokenizer, labels))
                advance(len(part))
        return records

    def _generate(
        self, part: list[list[int]], drafter: Drafter | None, told: Told | None
    ) -> list[Generation]:
        asked = self.asked
        rows = generate(
            self.model,
            part,
            asked.sampling,
            guide=self.guides,
            gate=asked.gate,
            drafter=drafter,
            exact=asked.exact,
            acceptance="typical" if asked.typical else "lossless",
            signals=self.shown,
            stops=Stops(asked.stops, asked.rejects, self.tokenizer),
            on_token=told,
        )
        if told is not None:
            told.end()
        for ids, row in zip(part, rows, strict=True):
            both_paths(self.model, ids, row)
        return rows

    def _guide(self, text: str) -> Guide:
        """NAME or NAME:WEIGHT: V-style by a score of text, Q-style by action values."""
        name, colon, weight = text.partition(":")
        try:
            pull = float(weight) if colon else self.asked.strength
        except ValueError:
            raise OtterError(
                f"--guide {text!r}: {weight!r} is no number", hint="reward:1.5"
            ) from None
        if check_signal(self.model, name).kind == "vocabulary":
            return VocabularyGuide(name, pull, self.asked.candidates)
        return SignalGuide(name, pull, self.asked.candidates, self.asked.label)

    def _drafter(self, encoded: list[list[int]]) -> Drafter | None:
        draft, tree = self.asked.draft, self.asked.tree
        if draft is None:
            return None
        if draft == "prompt-lookup":
            return PromptLookup()
        if tree is None:
            return FutureDrafter(draft)
        numbers = tree.removeprefix(_LEARNT).split(",")
        try:
            widths = [int(number) for number in numbers]
        except ValueError:
            raise OtterError(
                f"--tree {tree!r} is no list of widths", hint="such as 3,2,1, or learnt:16"
            ) from None
        if not tree.startswith(_LEARNT):
            return FutureDrafter(draft, TreeShape.of_widths(widths))
        texts = encoded[:_TEXTS_TO_LEARN_FROM]
        shape = learnt_tree(self.model, draft, texts, widths[0], self.asked.sampling.max_new_tokens)
        say(f"draft tree learnt, texts: {len(texts)}, tree: {shape}")
        return FutureDrafter(draft, shape)

    def _warn_untrained(self) -> None:
        steering = [text.partition(":")[0] for text in self.asked.guides]
        drafting = [self.asked.draft] if self.asked.draft else []
        for name in dict.fromkeys([*self.shown, *steering, *drafting]):
            if name in self.model.signal_configs and name not in self.model.manifest.training:
                warn(f"signal {name!r} is untrained: its numbers mean nothing yet")
