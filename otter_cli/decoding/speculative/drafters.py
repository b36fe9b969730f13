"""Drafters: future heads of the graft, prompt lookup, and a smaller language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.session import DecodingSession, ExpertSession
from otter_cli.decoding.speculative.drafts import BatchDrafter, Draft, Drafter, TreeShape
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.config import SignalConfig


@dataclass(frozen=True)
class FutureDrafter(Drafter):
    """Head j at t guesses t+1+j (METHOD, 3), as a chain of best tokens or a `tree` of better ones:
    with a cell after the tokens on its path, else by itself, as Medusa-1 heads do.

    Costs no pass: a product over the vocabulary for each head, of a cell for each inner node.
    """

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
        drafting = _CellDrafter if config.width != 0 else _HeadDrafter
        return drafting(session, self.signal, tree)


def future_signal(model: OtterForCausalLM, name: str) -> SignalConfig:
    """What the graft says of a signal that predicts tokens. Raises OtterError for any other."""
    config = model.signal_configs.get(name)
    if config is None or config.kind != "future":
        drafting = [one.name for one in model.signal_configs.values() if one.kind == "future"]
        raise OtterError(
            f"signal {name!r} is no future signal of this graft",
            hint=f"its future signals: {', '.join(drafting)}"
            if drafting
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
        tokens = best[:, self.heads, self.ranks]
        return Draft(tokens, self.tree.parents, torch.ones_like(tokens, dtype=torch.bool))


class _CellDrafter(_HeadDrafter):
    """The tree grows level by level: each node's guesses come after the tokens on its path."""

    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        # The pending token is the root, whose state is the base's own.
        taken = torch.tensor([text[-1:] for text in texts], device=self.session.device)
        states, levels = state.base, []
        for level in self.tree.levels:
            states, taken = states[:, level.inner], taken[:, level.inner]
            states = self.session.follow(self.signal, states, state.inserted, taken)
            best = self.session.logits(HiddenStates(states, {})).topk(self.tree.width, -1).indices
            taken, states = best[:, level.parents, level.ranks], states[:, level.parents]
            levels.append(taken)
        tokens = torch.cat(levels, 1)
        return Draft(tokens, self.tree.parents, torch.ones_like(tokens, dtype=torch.bool))


@dataclass(frozen=True)
class PromptLookup(Drafter):
    """What followed the last n-gram when it last occurred in the text. Costs nothing."""

    ngram: int = 3
    length: int = 4

    name: ClassVar[str] = "prompt-lookup"
    paper: ClassVar[str] = "Saxena 2023, prompt lookup decoding"

    def start(self, session: DecodingSession) -> BatchDrafter:
        return _LookupDrafter(self, session.device)

    def continuation(self, text: list[int]) -> list[int]:
        """The longest n-gram that recurs wins; of its occurrences the last."""
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
        found = [self.drafter.continuation(list(text)) for text in texts]
        width = max(map(len, found))
        padded = [tokens + [0] * (width - len(tokens)) for tokens in found]
        lengths = torch.tensor([len(tokens) for tokens in found], device=self.device)
        return Draft.chain(torch.tensor(padded, dtype=torch.long, device=self.device), lengths)


@dataclass(frozen=True)
class DraftModel(Drafter):
    """A smaller language model's own greedy continuation, `length` tokens.

    Costs `length` passes of it for each step, and its cache.
    """

    model: Any
    length: int = 4

    name: ClassVar[str] = "draft-model"
    paper: ClassVar[str] = "Leviathan et al., arXiv 2211.17192"

    def start(self, session: DecodingSession) -> BatchDrafter:
        vocab = session.model.shape.vocab
        if self.model.config.vocab_size != vocab:
            raise OtterError(
                f"the draft model's vocabulary has {self.model.config.vocab_size} tokens, the "
                f"base's {vocab}",
                hint="its tokens go to the base as they are: use one with the same tokenizer",
            )
        return _ModelDrafter(self)


class _ModelDrafter(BatchDrafter):
    def __init__(self, drafter: DraftModel) -> None:
        self.drafter, self.session = drafter, ExpertSession(drafter.model)
        self.fed: list[int] = []

    def prefill(self, prompts: list[list[int]]) -> None:
        self.session.prefill(prompts)
        self.fed = [len(prompt) for prompt in prompts]

    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        logits = self._catch_up(texts)
        tokens = [logits.argmax(-1)]
        for _ in range(self.drafter.length - 1):
            tokens.append(self.session.step(tokens[-1]).base[:, 0].argmax(-1))
        self.session.crop(torch.full_like(tokens[0], self.drafter.length - 1))
        self.external_passes = self.session.passes
        self.external_bytes = self.session.cache_bytes()
        drafts = torch.stack(tokens, 1)
        return Draft.chain(drafts, torch.full_like(tokens[0], drafts.shape[1]))

    def _catch_up(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Feeds what the rows have gained, which differs; logits [rows, vocab] at their ends."""
        gained = [list(text[n:]) for text, n in zip(texts, self.fed, strict=True)]
        width = max(map(len, gained))
        chain = [row + [0] * (width - len(row)) for row in gained]
        counts = torch.tensor([len(row) for row in gained], device=self.session.device)
        states = self.session.extend(torch.tensor(chain, device=self.session.device))
        self.session.keep(counts)
        self.fed = [len(text) for text in texts]
        # A row that has ended gains nothing; what is drafted for it is not looked at.
        return states.at((counts - 1).clamp(min=0)).base[:, 0]
