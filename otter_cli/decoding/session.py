"""Sessions over a graft, a reward model and an expert model, and the signal scores of a graft.

Each session runs its model over a KV cache of its own. Scores are what a signal's head gives, as
numbers to show and to guide by: classes become probabilities.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otter_cli.core.errors import OtterError, label_index
from otter_cli.decoding.kv_session import HiddenStates, KVSession
from otter_cli.decoding.kv_slots import full_cache
from otter_cli.model.lazy import LazyStream, supports_lazy_stream
from otter_cli.model.masks import attention_windows, is_recurrent
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.signals.config import SignalConfig, unknown_signal
from otter_cli.signals.finite import class_probabilities


class DecodingSession(KVSession):
    """A session over a graft. `stream=False` runs the plain base: no insertion, no signals.

    `windows` is for a base with sliding windows. "cached" layers keep their window alone, as in
    transformers. "masked" layers keep every slot, and masks apply the window; steps of many tokens
    need that. `length` preallocates that many slots.

    The stream runs when the states of a step are first read, over all steps of one token since the
    last time, where the graft allows it (`supports_lazy_stream`).
    """

    def __init__(
        self,
        model: OtterForCausalLM,
        *,
        stream: bool = True,
        windows: Literal["cached", "masked"] = "masked",
        length: int | None = None,
    ) -> None:
        own_cache = windows == "cached" and length is None and any(attention_windows(model.config))
        own_cache = own_cache or is_recurrent(model.config)
        full = partial(full_cache, model.config, length=length)
        super().__init__(model.new_cache if own_cache else full, model.base)
        self.model, self.stream = model, stream
        self.decoder = model.base.get_submodule(model.shape.family.decoder)
        self.deferred = LazyStream(model) if stream and supports_lazy_stream(model) else None

    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        arguments = {
            "attention_mask": mask,
            # Rows that have ended are still fed; their positions must stay within the window.
            "position_ids": positions.clamp(max=self.model.shape.max_positions - 1),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if not self.stream:
            return HiddenStates(self.decoder(input_ids=tokens, **arguments).last_hidden_state, {})
        if self.deferred is not None and tokens.shape[1] == 1 and self.passes > 1:
            return HiddenStates(*self.deferred.forward(tokens, **arguments))
        self.catch_up()
        out = self.model(tokens, signals=(), logits=False, **arguments)
        return HiddenStates(out.base_state, out.inserted_state)

    def catch_up(self) -> None:
        if self.deferred is not None:
            self.deferred.run_pending()

    def logits(self, state: HiddenStates) -> Tensor:
        """The base's logits, [rows, n, vocab]."""
        with torch.no_grad():
            return self.model.lm_head(state.base)

    def read(self, signal: str, state: HiddenStates, tokens: Tensor | None = None) -> Tensor:
        """A signal at each position, [rows, n, ...]; of action values only those of `tokens`
        [rows, n, k], where they are given."""
        with torch.no_grad():
            return self.model.read_signal(signal, state.base, state.inserted, tokens)


class _ExternalSession(KVSession):
    """A session over a model beside the base. Raises OtterError where some layer is recurrent."""

    def __init__(self, model: PreTrainedModel) -> None:
        if is_recurrent(model.config):
            raise OtterError(
                f"a {model.config.model_type} beside the base has layers of linear attention, "
                "whose state takes no token back",
                hint="use a model in which every layer attends",
            )
        super().__init__(partial(full_cache, model.config), model)
        self.model = model

    def _arguments(self, tokens: Tensor, mask: Any, positions: Tensor) -> dict[str, Any]:
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }


class RewardSession(_ExternalSession):
    """A session over a separate reward model (AutoModelForSequenceClassification)."""

    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        out = self.model.base_model(**self._arguments(tokens, mask, positions))
        return HiddenStates(out.last_hidden_state, {})

    def rewards(self, state: HiddenStates) -> Tensor:
        """The reward of the text up to each position, [rows, n]."""
        with torch.no_grad():
            return self.model.score(state.base).squeeze(-1)


class ExpertSession(_ExternalSession):
    """A session over another language model; its states are its logits."""

    def run(self, tokens: Tensor, mask: Any, positions: Tensor, last: int) -> HiddenStates:
        out = self.model(**self._arguments(tokens, mask, positions), logits_to_keep=last)
        return HiddenStates(out.logits, {})


def check_vocabulary(model: Any, session: DecodingSession, name: str, hint: str) -> None:
    """Raises OtterError where an external model's vocabulary has another size than the base's."""
    size, expected = model.config.vocab_size, session.model.shape.vocab
    if size != expected:
        raise OtterError(
            f"{name}'s vocabulary has {size} tokens, the base's {expected}",
            hint=hint,
        )


def signal_scores(session: DecodingSession, name: str, state: HiddenStates) -> Tensor:
    """Scores of a signal, [rows, n, attributes or classes]: values, or probabilities of classes.
    They may be infinite or NaN."""
    config = session.model.signal_configs[name]
    scores = session.read(name, state)
    if config.kind == "classes":
        return class_probabilities(scores)
    return scores[..., None] if config.size == 1 else scores


def check_signal(model: OtterForCausalLM, name: str) -> SignalConfig:
    """The configuration of a signal. Raises OtterError where the graft has none of that name."""
    known = model.signal_configs
    if name not in known:
        raise unknown_signal(name, known)
    return known[name]


def check_scoring_signal(model: OtterForCausalLM, name: str) -> None:
    """Raises OtterError where `name` is no signal of the graft, or one that scores no text."""
    kind = check_signal(model, name).kind
    if kind == "future":
        raise OtterError(
            f"signal {name!r} predicts tokens, it does not score them",
            hint=f"use it to draft: --draft {name}",
        )
    if kind == "vocabulary":
        raise OtterError(
            f"signal {name!r} scores tokens that could come, not the text so far",
            hint=f"use it to guide: --guide {name}",
        )


def score_column(model: OtterForCausalLM, name: str, label: str | None) -> int:
    """The index of `label` among a signal's scores; 0 without a label. Raises OtterError."""
    check_scoring_signal(model, name)
    return label_index(label, model.signal_configs[name].labels, f"signal {name!r}")


def end_tokens(session: DecodingSession) -> set[int]:
    """The base's end tokens."""
    eos = session.model.generation_config.eos_token_id
    return set() if eos is None else set(eos) if isinstance(eos, list) else {eos}
