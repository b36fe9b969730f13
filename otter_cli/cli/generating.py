"""From what `otter generate` was asked for to records of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from otter_cli.cli.generate_asked import Asked
from otter_cli.cli.generate_drafts import drafter_of
from otter_cli.cli.generate_prompts import encoded_of
from otter_cli.cli.generated import Told, labels_of, record_of
from otter_cli.core.console import progress, say, warn
from otter_cli.data.prompts import Prompt
from otter_cli.decoding import (
    Generation,
    Guide,
    Stops,
    both_paths,
    generate,
)
from otter_cli.decoding.drafts import Drafter
from otter_cli.decoding.named_guides import guide_of, parse_guide
from otter_cli.decoding.positions import warnings_of
from otter_cli.decoding.scores import check_scores
from otter_cli.model import OtterForCausalLM
from otter_cli.model.pretrained import load_tokenizer
from otter_cli.signals.finite import broken, warn_not_finite


class Generating:
    """A loaded graft with what is asked of it."""

    def __init__(self, asked: Asked, folder: Path, base: Path | None, device: str) -> None:
        self.asked = asked
        self.model = OtterForCausalLM.from_pretrained(folder, base=base, device=device)
        self.tokenizer: Any = load_tokenizer(base or folder)
        configs = self.model.signal_configs
        # Others guess tokens, or score those that could come.
        ahead = ("future", "vocabulary")
        scoring = [name for name, config in configs.items() if config.kind not in ahead]
        for name in asked.signals:
            check_scores(self.model, name)
        self.shown = list(asked.signals) or scoring
        self.guides = [self._guide(text) for text in asked.guides]

    def run(self, prompts: list[Prompt], file: Path | None = None) -> list[dict[str, Any]]:
        """A record of each prompt's text, in order; `file`: where they are from, for messages."""
        self._warn_untrained()
        chat = self._chats()
        encoded = [encoded_of(self.tokenizer, prompt, chat, file) for prompt in prompts]
        streams = self.asked.stream
        if streams is None:
            streams = len(prompts) == 1 and sys.stdout.isatty()
        batch = 1 if streams or self.asked.exact else self.asked.batch
        drafter = drafter_of(self.asked, self.model, encoded)
        labels, records = labels_of(self.model, self.shown), []
        asked = self.asked
        warnings = warnings_of(
            self.model,
            guides=self.guides,
            gate=asked.gate if self.guides else None,
            stops=Stops(signals=asked.rejects),
            signals=self.shown,
        )
        without: list[str] = []
        with progress(0 if streams else len(prompts), "generating") as advance:
            for start in range(0, len(prompts), batch):
                here = slice(start, start + batch)
                part, texts = encoded[here], [prompt.text for prompt in prompts[here]]
                shown = f"{texts[0]}\n" if chat else texts[0]
                told = Told(self.tokenizer, shown, part[0]) if streams else None
                rows = self._generate(part, drafter, told)
                for text, ids, row in zip(texts, part, rows, strict=True):
                    record = record_of(text, ids, row, self.tokenizer, labels)
                    records.append({**record, "chat": chat, "warnings": warnings})
                    without += broken(row.signals)
                advance(len(part))
        warn_not_finite(without)
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
            read_every=asked.read_every,
            stops=Stops(asked.stops, asked.rejects, self.tokenizer),
            on_token=told,
        )
        if told is not None:
            told.end()
        for ids, row in zip(part, rows, strict=True):
            both_paths(self.model, ids, row)
        return rows

    def _guide(self, text: str) -> Guide:
        """NAME[/LABEL][:WEIGHT]."""
        name, weight = parse_guide(text, self.asked.strength)
        return guide_of(self.model, name, weight, self.asked.candidates, self.asked.label)

    def _chats(self) -> bool:
        """Whether prompts go through the chat template; says so where nobody asked."""
        if self.asked.chat is not None:
            return self.asked.chat
        if not self.tokenizer.chat_template:
            return False
        say("prompts are messages, in the base's chat template; --raw goes on from plain text")
        return True

    def _warn_untrained(self) -> None:
        steering = [text.partition(":")[0].partition("/")[0] for text in self.asked.guides]
        drafting = [self.asked.draft] if self.asked.draft else []
        for name in dict.fromkeys([*self.shown, *steering, *drafting]):
            if name in self.model.signal_configs and name not in self.model.manifest.training:
                warn(f"signal {name!r} is untrained: its numbers mean nothing yet")
