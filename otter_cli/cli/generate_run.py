"""One run of `otter generate`: from the options to a record of each text.

Prompts come from the command line, a file or stdin. The drafter is a future signal, prompt lookup
or a smaller model. `GenerateRun` loads the graft and decodes in batches. Importing this file
imports torch, so the verb imports it only when it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from otter_cli.api.model import load
from otter_cli.cli.generate_options import PROMPT_LOOKUP, GenerateOptions
from otter_cli.cli.generate_view import StreamPrinter, text_record
from otter_cli.cli.stdio import stdin_lines
from otter_cli.core.console import progress, say, warn
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.prompts import Prompt, read_prompts
from otter_cli.decoding.bounds import Stops, parse_gate, parse_signal_bound
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import guide_for_signal
from otter_cli.decoding.learned_trees import learn_tree
from otter_cli.decoding.request_checks import request_warnings
from otter_cli.decoding.results import Generation
from otter_cli.decoding.session import check_scoring_signal
from otter_cli.decoding.speculative.decoder import rescore_near_ties
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import Drafter, TreeShape
from otter_cli.model.load import load_base
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.finite import non_finite_signals, warn_non_finite

_LEARNT_TREE = "learnt:"
# More texts would cost more time than the better tree saves.
_MAX_TREE_TEXTS = 8


def build_drafter(
    options: GenerateOptions, model: OtterForCausalLM, prompts: list[list[int]]
) -> Drafter | None:
    """The drafter of --draft: the heads of a signal, prompt lookup, or a smaller model.

    A tree `learnt:N` is learnt from the token ids of the prompts. Raises OtterError for a tree that
    cannot be read.
    """
    if options.draft is None:
        return None
    if options.draft == PROMPT_LOOKUP:
        return PromptLookup()
    if options.draft_folder is not None:
        return DraftModel(load_base(options.draft_folder).to(model.device).eval())
    if options.tree is None:
        return FutureDrafter(options.draft)
    learnt = options.tree.startswith(_LEARNT_TREE)
    try:
        widths = [int(number) for number in options.tree.removeprefix(_LEARNT_TREE).split(",")]
    except ValueError:
        widths = []
    if not widths or (learnt and len(widths) > 1):
        raise OtterError(
            f"--tree {options.tree} is neither a list of widths nor a number of tokens to learn",
            hint="such as 3,2,1, or learnt:16",
        )
    if not learnt:
        return FutureDrafter(options.draft, TreeShape.of_widths(widths))
    texts = prompts[:_MAX_TREE_TEXTS]
    shape = learn_tree(model, options.draft, texts, widths[0], options.max_new_tokens)
    say(f"draft tree learnt, texts: {len(texts)}, tree: {shape}")
    return FutureDrafter(options.draft, shape)


def read_requested_prompts(prompt: str | None, file: Path | None) -> list[Prompt]:
    """The given prompt, the prompts of a file, or for `-` the lines of stdin. Raises OtterError if
    there is none."""
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
        raise OtterError("stdin holds no prompt", hint="one prompt per line")
    return lines


def encode_prompt(
    tokenizer: Any, prompt: Prompt, chat: bool, file: Path | None = None
) -> list[int]:
    """The token ids of a prompt. With `chat`, the base's template writes it, up to the place where
    the answer begins. Raises OtterError for messages without `chat`, and for `chat` without a
    template."""
    text = prompt.written(tokenizer, chat, file)
    return list(text.ids) if isinstance(text, ChatText) else list(tokenizer(text)["input_ids"])


class GenerateRun:
    """A loaded graft, ready to continue prompts as the options say. Raises OtterError."""

    def __init__(self, options: GenerateOptions) -> None:
        self.options = options
        self.gate = parse_gate(list(options.gate))
        self.rejects = tuple(map(parse_signal_bound, options.reject))
        # --exact decides ties of drafts, so it means nothing without drafts.
        self.exact = options.exact and options.draft is not None
        self.otter = load(options.folder, base=options.base, device=options.device)
        self.model, self.tokenizer = self.otter.model, self.otter.tokenizer
        for name in options.signal:
            check_scoring_signal(self.model, name)
        self.shown = list(options.signal) or self.otter.signals
        self.guides = [
            guide_for_signal(self.model, name, weight, options.candidates, options.label)
            for name, weight in options.guides
        ]

    def run(self, prompts: list[Prompt]) -> list[dict[str, Any]]:
        """The record of each prompt's text, in order."""
        options = self.options
        self._warn_untrained()
        chat = self._uses_chat_template()
        encoded = [encode_prompt(self.tokenizer, prompt, chat, options.file) for prompt in prompts]
        streams = options.stream
        if streams is None:
            streams = len(prompts) == 1 and sys.stdout.isatty()
        streams = bool(streams)
        size = 1 if streams or self.exact else options.batch
        drafter = build_drafter(options, self.model, encoded)
        labels = self.otter.labels(self.shown)
        warnings = request_warnings(
            self.model,
            guides=self.guides,
            gate=self.gate if self.guides else None,
            stops=Stops(signals=self.rejects),
            signals=self.shown,
        )
        records: list[dict[str, Any]] = []
        not_finite: list[str] = []
        with progress(0 if streams else len(prompts), "generating") as advance:
            for start in range(0, len(prompts), size):
                batch = encoded[start : start + size]
                texts = [prompt.text for prompt in prompts[start : start + size]]
                shown = (f"{texts[0]}\n" if chat else texts[0]) if self._shows_prompt() else ""
                printer = StreamPrinter(self.tokenizer, shown, batch[0]) if streams else None
                rows = self._generate(batch, drafter, printer)
                for text, ids, row in zip(texts, batch, rows, strict=True):
                    record = text_record(text, ids, row, self.tokenizer, labels)
                    records.append(
                        {**record, "chat": chat, "warnings": warnings, "streamed": streams}
                    )
                    not_finite += non_finite_signals(row.signals)
                advance(len(batch))
        warn_non_finite(not_finite)
        return records

    def _generate(
        self, batch: list[list[int]], drafter: Drafter | None, printer: StreamPrinter | None
    ) -> list[Generation]:
        options = self.options
        rows = generate(
            self.model,
            batch,
            options.sampling,
            guide=self.guides,
            gate=self.gate,
            drafter=drafter,
            exact=self.exact,
            acceptance="typical" if options.typical else "lossless",
            signals=self.shown,
            read_every=options.read_every,
            stops=Stops(options.stop, self.rejects, self.tokenizer),
            on_token=printer,
        )
        if printer is not None:
            printer.end()
        for ids, row in zip(batch, rows, strict=True):
            rescore_near_ties(self.model, ids, row)
        return rows

    def _shows_prompt(self) -> bool:
        details = self.options.details
        return sys.stdout.isatty() if details is None else details

    def _uses_chat_template(self) -> bool:
        """Whether prompts go through the chat template. Says so if the user did not choose."""
        if self.options.chat is not None:
            return self.options.chat
        if not self.tokenizer.chat_template:
            return False
        say("prompts are messages in the base's chat template; --raw continues plain text instead")
        return True

    def _warn_untrained(self) -> None:
        guiding = [name.partition("/")[0] for name, _ in self.options.guides]
        drafting = [self.options.draft] if self.options.draft else []
        for name in dict.fromkeys([*self.shown, *guiding, *drafting]):
            if name in self.model.signal_configs and name not in self.model.manifest.training:
                warn(f"signal {name!r} is untrained: its numbers mean nothing yet")
