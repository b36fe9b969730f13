"""Prefill and decode of anything that takes tokens and a cache, as steps to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from otter_cli.model import OtterForCausalLM


@dataclass(frozen=True)
class Contestant:
    """`run(tokens [batch, n], cache)` gives what is wanted of the last position."""

    run: Callable[[Tensor, Cache], Tensor]
    new_cache: Callable[[], Cache]


def stock_base(model: PreTrainedModel) -> Contestant:
    """Logits of the last position, [batch, 1, vocab]."""

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        out: Any = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits

    return Contestant(run, lambda: _dynamic(model))


def grafted(model: OtterForCausalLM) -> Contestant:
    """The same logits, with every signal read at the same position beside them."""

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        out = model(tokens, signals=(), past_key_values=cache, use_cache=True, logits_to_keep=1)
        last = {name: state[:, -1:] for name, state in out.inserted_state.items()}
        for name in model.signal_configs:
            model.read_signal(name, out.base_state[:, -1:], last)
        assert out.logits is not None
        return out.logits

    return Contestant(run, model.new_cache)


def grafted_later(model: OtterForCausalLM, every: int) -> Contestant:
    """The same, whose single tokens are read together, `every` of them at once."""
    import torch

    from otter_cli.model import Deferred

    at_once, deferred = grafted(model), Deferred(model)
    waiting: list[tuple[Tensor, Mapping[str, Tensor]]] = []

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        if tokens.shape[1] > 1:
            return at_once.run(tokens, cache)
        waiting.append(deferred.forward(tokens, past_key_values=cache, use_cache=True))
        logits = model.lm_head(waiting[-1][0])
        if len(waiting) == every:
            y, v = zip(*waiting, strict=True)
            inserted = {name: torch.cat([one[name] for one in v], 1) for name in v[0]}
            for name in model.signal_configs:
                model.read_signal(name, torch.cat(y, 1), inserted)
            waiting.clear()
        return logits

    return Contestant(run, model.new_cache)


def separate_reward_model(model: PreTrainedModel) -> Contestant:
    """A reward model of its own weights and cache, [batch, 1]: what the insertion replaces."""

    def run(tokens: Tensor, cache: Cache) -> Tensor:
        out = model.base_model(tokens, past_key_values=cache, use_cache=True)
        return model.score(out.last_hidden_state[:, -1])

    return Contestant(run, lambda: _dynamic(model))


def prefill(contestant: Contestant, tokens: Tensor) -> Callable[[], Tensor]:
    """A step that runs `tokens` [batch, n] over an empty cache."""
    return lambda: contestant.run(tokens, contestant.new_cache())


def decode(contestant: Contestant, prompt: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """A step that runs the next column of `tokens` [batch, steps] over a cache that grows."""
    cache = contestant.new_cache()
    contestant.run(prompt, cache)
    columns = iter(tokens.split(1, 1))
    return lambda: contestant.run(next(columns), cache)


def again(contestant: Contestant, prompt: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """A step that runs the same `tokens` [batch, n] after the prompt, and takes them back."""
    cache: Any = contestant.new_cache()
    contestant.run(prompt, cache)

    def step() -> Tensor:
        out = contestant.run(tokens, cache)
        cache.crop(-tokens.shape[1])
        return out

    return step


def _dynamic(model: PreTrainedModel) -> Cache:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
