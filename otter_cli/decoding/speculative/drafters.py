"""Drafters: future heads of the graft, prompt lookup, and a smaller language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.session import DecodingSession, ExpertSession, check_vocabulary
from otter_cli.decoding.speculative.drafts import BatchDrafter, Draft, Drafter, TreeShape
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.config import SignalConfig


@dataclass(frozen=True)
class FutureDrafter(Drafter):
    """Head j at t guesses token t+1+j (docs/method.md, "Drafting and exact acceptance"). Drafts a
    chain of best guesses, or a `tree` of the better ones. A signal with a cell takes the tokens on
    the path into account; plain heads guess independently, as in Medusa-1. Costs no pass: a product
    over the vocabulary for each head, or a cell for each inner node."""

    signal: str = "future"
    tree: TreeShape | None = None

    name: ClassVar[str] = "future"
    paper: ClassVar[str] = "Otter, arXiv 2408.10764; Medusa, 2401.10774; Hydra, 2402.05109"
    needs_stream: ClassVar[bool] = True

    def start(self, session: DecodingSession) -> BatchDrafter:
        config = future_signal(session.model, self.signal)
        tree = self.tree or TreeShape.of_widths([1] * config.size)
        if tree.depth > config.size:
            raise OtterError(
                f"a tree of depth {tree.depth}, and signal {self.signal!r} has {config.size} heads",
                hint="one width for each head at most",
            )
        vocabulary = session.model.shape.vocab
        if tree.width > vocabulary:
            raise OtterError(
                f"a draft tree of width {tree.width}, and the vocabulary has {vocabulary} tokens",
                hint="each width is the number of different tokens that a head guesses",
            )
        drafter = _CellDrafter if config.width != 0 else _HeadDrafter
        return drafter(session, self.signal, tree)


def future_signal(model: OtterForCausalLM, name: str) -> SignalConfig:
    """The configuration of a signal that predicts tokens. Raises OtterError for any other."""
    config = model.signal_configs.get(name)
    if config is None or config.kind != "future":
        names = [signal.name for signal in model.signal_configs.values() if signal.kind == "future"]
        raise OtterError(
            f"signal {name!r} is no future signal of this graft",
            hint=f"its future signals: {', '.join(names)}"
            if names
            else "graft one with --signal future:3, and train it",
        )
    return config


class _HeadDrafter(BatchDrafter):
    def __init__(self, session: DecodingSession, signal: str, tree: TreeShape) -> None:
        self.session, self.signal, self.tree = session, signal, tree
        self.heads = torch.tensor(tree.depths, device=session.device) - 1
        self.ranks = torch.tensor([path[-1] for path in tree.paths], device=session.device)

    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        best = self.session.read(self.signal, state)[:, 0].topk(self.tree.width, -1).indices
        return self._draft_of(best[:, self.heads, self.ranks])

    def _draft_of(self, tokens: Tensor) -> Draft:
        return Draft(tokens, self.tree.parents, torch.ones_like(tokens, dtype=torch.bool))


class _CellDrafter(_HeadDrafter):
    """Drafts the tree level by level: the guesses of a node depend on the tokens on its path."""

    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        # The root is the pending token, with the base's own state.
        tokens = torch.tensor([text[-1:] for text in texts], device=self.session.device)
        states, levels = state.base, []
        for level in self.tree.levels:
            states, tokens = states[:, level.inner], tokens[:, level.inner]
            with torch.no_grad():
                follow = self.session.model.follow_signal
                states = follow(self.signal, states, state.inserted, tokens)
            best = self.session.logits(HiddenStates(states, {})).topk(self.tree.width, -1).indices
            tokens, states = best[:, level.parents, level.ranks], states[:, level.parents]
            levels.append(tokens)
        return self._draft_of(torch.cat(levels, 1))


@dataclass(frozen=True)
class PromptLookup(Drafter):
    """Drafts what followed the last n-gram where it last occurred in the text. Costs no pass."""

    ngram: int = 3
    length: int = 4

    name: ClassVar[str] = "prompt-lookup"
    paper: ClassVar[str] = "Saxena 2023, prompt lookup decoding"

    def start(self, session: DecodingSession) -> BatchDrafter:
        return _LookupDrafter(self, session.device)

    def continuation(self, text: list[int]) -> list[int]:
        """What followed the last occurrence of the longest n-gram that occurs twice."""
        for n in range(min(self.ngram, len(text) - 1), 0, -1):
            tail = text[-n:]
            for start in range(len(text) - n - 1, -1, -1):
                if text[start : start + n] == tail:
                    return text[start + n : start + n + self.length]
        return []


class _LookupDrafter(BatchDrafter):
    def __init__(self, drafter: PromptLookup, device: torch.device) -> None:
        self.drafter, self.device = drafter, device

    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        return Draft.chain(
            *_padded([self.drafter.continuation(list(text)) for text in texts], self.device)
        )


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [rows, longest], padded on the right, and the length of each row, [rows]."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens.to(device), lengths.to(device)


@dataclass(frozen=True)
class DraftModel(Drafter):
    """Drafts the greedy continuation of a smaller language model, `length` tokens. Costs `length`
    passes of it for each step, and its cache."""

    model: Any
    length: int = 4

    name: ClassVar[str] = "draft-model"
    paper: ClassVar[str] = "Leviathan et al., arXiv 2211.17192"

    def start(self, session: DecodingSession) -> BatchDrafter:
        hint = "the base verifies its token ids as they are: use one with the same tokenizer"
        check_vocabulary(self.model, session, "the draft model", hint)
        return _ModelDrafter(self)


class _ModelDrafter(BatchDrafter):
    def __init__(self, drafter: DraftModel) -> None:
        self.drafter, self.session = drafter, ExpertSession(drafter.model)
        self.fed_lengths: list[int] = []

    def prefill(self, prompts: list[list[int]]) -> None:
        self.session.prefill(prompts)
        self.fed_lengths = [len(prompt) for prompt in prompts]

    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        logits = self._feed_new_tokens(texts)
        tokens = [logits.argmax(-1)]
        for _ in range(self.drafter.length - 1):
            tokens.append(self.session.step(tokens[-1]).base[:, 0].argmax(-1))
        self.session.crop(torch.full_like(tokens[0], self.drafter.length - 1))
        self.external_passes = self.session.passes
        self.external_bytes = self.session.cache_bytes()
        drafts = torch.stack(tokens, 1)
        return Draft.chain(drafts, torch.full_like(tokens[0], drafts.shape[1]))

    def _feed_new_tokens(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Feeds the tokens that each row gained; logits [rows, vocab] after the last of them."""
        gained = [list(text[n:]) for text, n in zip(texts, self.fed_lengths, strict=True)]
        tokens, counts = _padded(gained, self.session.device)
        states = self.session.extend(tokens)
        self.session.keep(counts)
        self.fed_lengths = [len(text) for text in texts]
        # A row that has ended gains nothing; its drafts are ignored.
        return states.select((counts - 1).clamp(min=0)).base[:, 0]
