"""Sessions: steps over a graft, with its logits and signals, and over a separate reward model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from otter_cli.core.errors import OtterError
from otter_cli.decoding.cached_steps import Session
from otter_cli.decoding.slots import full_cache
from otter_cli.decoding.state import State
from otter_cli.model import Deferred, OtterForCausalLM, may_defer
from otter_cli.model.masks import recurrent, windows_of


class DecodingSession(Session):
    """Over a graft. `stream=False` runs the plain base: no insertion, no signals.

    `windows`: a windowed base's layers keep their window alone, as transformers does, or all, and
    masks cut the window out: what steps of many tokens need. `length` preallocates that many slots.
    The streams run when the states of a step are looked at, over all steps of one token since then
    (where the graft allows it: `may_defer`).
    """

    def __init__(
        self,
        model: OtterForCausalLM,
        *,
        stream: bool = True,
        windows: Literal["cached", "masked"] = "masked",
        length: int | None = None,
    ) -> None:
        kept = windows == "cached" and length is None and any(windows_of(model.config))
        kept = kept or recurrent(model.config)
        full = partial(full_cache, model.config, length=length)
        super().__init__(model.new_cache if kept else full, model.base)
        self.model, self.stream = model, stream
        self.decoder = model.base.get_submodule(model.shape.family.decoder)
        self.deferred = Deferred(model) if stream and may_defer(model) else None

    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> State:
        arguments = {
            "attention_mask": mask,
            # Rows that have ended, or soon will, are fed beside the others: not past the window.
            "position_ids": positions.clamp(max=self.model.shape.max_positions - 1),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if not self.stream:
            return State(self.decoder(input_ids=tokens, **arguments).last_hidden_state, {})
        if self.deferred is not None and tokens.shape[1] == 1 and self.passes > 1:
            return State(*self.deferred.forward(tokens, **arguments))
        self.settle()
        out = self.model(tokens, signals=(), logits=False, **arguments)
        return State(out.base_state, out.inserted_state)

    def settle(self) -> None:
        if self.deferred is not None:
            self.deferred.catch_up()

    def logits(self, state: State) -> Tensor:
        """The base's logits of the given positions, [rows, n, vocab]."""
        with torch.no_grad():
            return self.model.lm_head(state.base)

    def read(self, signal: str, state: State, tokens: Tensor | None = None) -> Tensor:
        """A signal at the given positions, [rows, n, ...]; action values of `tokens` [rows, n, k]
        alone, where given."""
        with torch.no_grad():
            return self.model.read_signal(signal, state.base, state.inserted, tokens)

    def follow(
        self, signal: str, states: Tensor, inserted: Mapping[str, Tensor], tokens: Tensor
    ) -> Tensor:
        """States [rows, n, d] of a future signal's cell after `tokens` [rows, n], one each."""
        with torch.no_grad():
            return self.model.follow_signal(signal, states, inserted, tokens)


class RewardSession(Session):
    """Over a separate reward model (AutoModelForSequenceClassification) with a cache of its own."""

    def __init__(self, reward_model: PreTrainedModel) -> None:
        super().__init__(partial(_attended, reward_model.config), reward_model)
        self.reward_model = reward_model

    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> State:
        out = self.reward_model.base_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return State(out.last_hidden_state, {})

    def rewards(self, state: State) -> Tensor:
        """The reward of the text up to each position, [rows, n]."""
        with torch.no_grad():
            return self.reward_model.score(state.base).squeeze(-1)


class ExpertSession(Session):
    """Over another language model with a cache of its own; its states are its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(partial(_attended, model.config), model)
        self.model = model

    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> State:
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return State(out.logits, {})


def _attended(config: Any) -> Cache:
    """A cache for a model beside the base. OtterError where its layers don't all attend."""
    if recurrent(config):
        raise OtterError(
            f"a {config.model_type} beside the base has layers of linear attention, whose state "
            "takes no token back",
            hint="use a model in which every layer attends",
        )
    return full_cache(config)
