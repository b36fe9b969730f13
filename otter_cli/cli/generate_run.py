"""One run of `otter generate`: from the options to a record of each text.

The request checks its options; prompts come from the command line, a file or stdin; the drafter is
a future signal, prompt lookup or a smaller model; `GenerateRun` loads the graft and decodes in
batches. Importing this file imports torch, so the verb does it when it is called.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.cli.generate_view import StreamPrinter, signal_labels, text_record
from otter_cli.cli.stdio import stdin_lines
from otter_cli.core.console import progress, say, warn
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.prompts import Prompt, read_prompts
from otter_cli.decoding.bounds import Gate, SignalBound, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.guide import Guide
from otter_cli.decoding.guides.signal_guides import guide_for_signal, parse_guide
from otter_cli.decoding.request_checks import request_warnings
from otter_cli.decoding.results import Generation
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import check_scoring_signal
from otter_cli.decoding.speculative.decoder import rescore_near_ties
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import Drafter, TreeShape
from otter_cli.decoding.speculative.learned_trees import learn_tree
from otter_cli.model.load import load_base, load_tokenizer
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.finite import non_finite_signals, warn_non_finite

PROMPT_LOOKUP = "prompt-lookup"


@dataclass(frozen=True)
class GenerateRequest:
    """Texts as they were typed where only the loaded graft can say what they mean."""

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
    # None: as the base's tokenizer has a chat template, or none.
    chat: bool | None
    read_every: int | None
    batch: int
    stream: bool | None

    @property
    def draft_folder(self) -> Path | None:
        """The draft model's, where the draft is one's."""
        folder = Path(self.draft or "")
        return folder if self.draft and folder.is_dir() else None

    def check(self) -> None:
        """Raises OtterError for options that go with nothing."""
        if self.batch < 1:
            raise OtterError(f"--batch is {self.batch}", hint="at least 1")
        if "" in self.stops:
            raise OtterError(
                "--stop is empty, and an empty string ends every text at once",
                hint="give the string to end at",
            )
        by_heads = self.draft not in (None, PROMPT_LOOKUP) and not self.draft_folder
        if self.tree is not None and not by_heads:
            raise OtterError("--tree needs --draft with a future signal", hint="--draft future")
        if self.typical and self.draft is None:
            raise OtterError("--typical accepts drafts, and there are none", hint="--draft future")


_LEARNT_TREE = "learnt:"
# More of them would take longer than what the better tree saves.
_MAX_TREE_TEXTS = 8


def build_drafter(
    asked: GenerateRequest, model: OtterForCausalLM, encoded: list[list[int]]
) -> Drafter | None:
    """A signal's heads, prompt lookup, or a smaller model from its folder; a tree that is learnt
    is learnt from the prompts. Raises OtterError for a tree that is none."""
    if asked.draft is None:
        return None
    if asked.draft == PROMPT_LOOKUP:
        return PromptLookup()
    if asked.draft_folder is not None:
        return DraftModel(load_base(asked.draft_folder).to(model.device).eval())
    if asked.tree is None:
        return FutureDrafter(asked.draft)
    learnt = asked.tree.startswith(_LEARNT_TREE)
    try:
        widths = [int(number) for number in asked.tree.removeprefix(_LEARNT_TREE).split(",")]
    except ValueError:
        widths = []
    if not widths or (learnt and len(widths) > 1):
        raise OtterError(
            f"--tree {asked.tree} is neither a list of widths nor a number of tokens to learn",
            hint="such as 3,2,1, or learnt:16",
        )
    if not learnt:
        return FutureDrafter(asked.draft, TreeShape.of_widths(widths))
    texts = encoded[:_MAX_TREE_TEXTS]
    shape = learn_tree(model, asked.draft, texts, widths[0], asked.sampling.max_new_tokens)
    say(f"draft tree learnt, texts: {len(texts)}, tree: {shape}")
    return FutureDrafter(asked.draft, shape)


def read_requested_prompts(prompt: str | None, file: Path | None) -> list[Prompt]:
    """The one prompt, those of a file, or stdin's lines for `-`. Raises OtterError for none."""
    if (prompt is None) == (file is None):
        raise OtterError(
            "give a prompt, or --file, and not both",
            hint='otter generate FOLDER "text", or - to read prompts from stdin',
        )
    if file is not None:
        return read_prompts(file)
    if prompt != "-":
        return [Prompt(str(prompt), 1)]
    lines = [Prompt(line, number) for number, line in enumerate(stdin_lines(), 1) if line.strip()]
    if not lines:
        raise OtterError("stdin holds no prompt", hint="one prompt a line")
    return lines


def encode_prompt(
    tokenizer: Any, prompt: Prompt, chat: bool, file: Path | None = None
) -> list[int]:
    """The tokens of a prompt; with `chat` by the base's template, up to where the answer begins.
    Raises OtterError for messages without `chat`, and for `chat` without a template."""
    text = prompt.written(tokenizer, chat, file)
    return list(text.ids) if isinstance(text, ChatText) else list(tokenizer(text)["input_ids"])


class GenerateRun:
    """A loaded graft with what is asked of it."""

    def __init__(
        self, asked: GenerateRequest, folder: Path, base: Path | None, device: str
    ) -> None:
        self.asked = asked
        self.model = OtterForCausalLM.from_pretrained(folder, base=base, device=device)
        self.tokenizer: Any = load_tokenizer(base or folder)
        configs = self.model.signal_configs
        # Others guess tokens, or score those that could come.
        ahead = ("future", "vocabulary")
        scoring = [name for name, config in configs.items() if config.kind not in ahead]
        for name in asked.signals:
            check_scoring_signal(self.model, name)
        self.shown = list(asked.signals) or scoring
        self.guides = [self._guide(text) for text in asked.guides]

    def run(self, prompts: list[Prompt], file: Path | None = None) -> list[dict[str, Any]]:
        """A record of each prompt's text, in order; `file`: where they are from, for messages."""
        self._warn_untrained()
        chat = self._chats()
        encoded = [encode_prompt(self.tokenizer, prompt, chat, file) for prompt in prompts]
        streams = self.asked.stream
        if streams is None:
            streams = len(prompts) == 1 and sys.stdout.isatty()
        batch = 1 if streams or self.asked.exact else self.asked.batch
        drafter = build_drafter(self.asked, self.model, encoded)
        labels, records = signal_labels(self.model, self.shown), []
        asked = self.asked
        warnings = request_warnings(
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
                told = StreamPrinter(self.tokenizer, shown, part[0]) if streams else None
                rows = self._generate(part, drafter, told)
                for text, ids, row in zip(texts, part, rows, strict=True):
                    record = text_record(text, ids, row, self.tokenizer, labels)
                    records.append({**record, "chat": chat, "warnings": warnings})
                    without += non_finite_signals(row.signals)
                advance(len(part))
        warn_non_finite(without)
        return records

    def _generate(
        self, part: list[list[int]], drafter: Drafter | None, told: StreamPrinter | None
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
            rescore_near_ties(self.model, ids, row)
        return rows

    def _guide(self, text: str) -> Guide:
        """NAME[/LABEL][:WEIGHT]."""
        name, weight = parse_guide(text, self.asked.strength)
        return guide_for_signal(self.model, name, weight, self.asked.candidates, self.asked.label)

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
