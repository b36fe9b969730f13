"""From logits to a token: sampling settings, the sampler, and the interface of token selectors.

Each row draws from a generator of its own, so its text does not depend on the rest of the batch.
A token selector decides how a row's next token is chosen; guides have one of their own
(`guides/selector.py`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.decoding.hidden_states import HiddenStates


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off.

    Every row draws from a generator of its own, seeded by `seed` and the row's place among equal
    prompts: what else is in the batch does not matter. OtterError for values without meaning.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        bounds = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            # Written so that NaN fails too.
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1 (all)"),
        )
        for name, holds, wanted in bounds:
            if not holds:
                raise OtterError(f"{name} is {getattr(self, name)}", hint=f"it must be {wanted}")


class Sampler:
    """Chooses tokens for the rows of one batch."""

    def __init__(
        self,
        sampling: Sampling,
        prompts: list[list[int]],
        device: torch.device,
        before: Sequence[Sequence[int]] = (),
    ) -> None:
        """`before`: prompts of the request that other batches hold, and that count as equal."""
        self.sampling = sampling
        seen: Counter[tuple[int, ...]] = Counter(map(tuple, before))
        self.generators = []
        for prompt in map(tuple, prompts):
            seed = derive_seed("sampling", sampling.seed, prompt, seen[prompt])
            self.generators.append(torch.Generator(device).manual_seed(seed))
            seen[prompt] += 1
        # Log-probabilities [rows] of the last pick; greedy picks are certain.
        self.drawn = torch.zeros(len(prompts), dtype=torch.float64, device=device)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    def choose(self, logits: Tensor) -> Tensor:
        """Tokens [rows] from logits [rows, vocab]."""
        return self.pick(logits, self.uniform())

    def pick(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """The same by numbers [rows] that `uniform` has drawn."""
        if uniform is None:
            return logits.argmax(-1)
        probabilities = self.probabilities(logits)
        index = invert_cdf(probabilities, uniform)
        self.drawn = probabilities.gather(-1, index[:, None])[:, 0].log()
        return index

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from: temperature, then top-k, then top-p (nucleus)."""
        scaled = logits.double() / self.sampling.temperature
        if self.sampling.top_k:
            kept = scaled.topk(min(self.sampling.top_k, scaled.shape[-1])).values[..., -1:]
            scaled = scaled.masked_fill(scaled < kept, -math.inf)
        if self.sampling.top_p < 1:
            scaled = scaled.masked_fill(outside_nucleus(scaled, self.sampling.top_p), -math.inf)
        return scaled.softmax(-1)

    def uniform(self) -> Tensor | None:
        """A number in [0, 1) for each row, [rows]; greedy decoding draws none."""
        return None if self.greedy else self.numbers()

    def draw(self, probabilities: Tensor) -> Tensor:
        """One index a row of [rows, n], by inversion: one uniform number from each generator."""
        return invert_cdf(probabilities, self.numbers())

    def numbers(self, rows: Tensor | None = None) -> Tensor:
        """The next of each row's generator, [rows]; only of the `rows` [rows] that hold, where
        given: how much a row draws depends on nobody else."""
        drawn = torch.zeros(len(self.generators), dtype=torch.float64)
        for row, generator in enumerate(self.generators):
            if rows is None or rows[row]:
                drawn[row] = torch.rand(
                    (), generator=generator, dtype=torch.float64, device=generator.device
                )
        return drawn.to(self.generators[0].device)


def invert_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The index [rows] at which the cumulated `probabilities` [rows, n] pass `uniform` [rows]."""
    cumulative = probabilities.cumsum(-1)
    reached = uniform.to(probabilities.dtype) * cumulative[:, -1]
    index = torch.searchsorted(cumulative, reached[:, None], right=True)
    return index.squeeze(-1).clamp(max=probabilities.shape[-1] - 1)


def outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Which tokens lie outside the smallest set that holds `top_p`, [..., vocab]."""
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    # The token that crosses the bound stays.
    dropped = ordered.cumsum(-1) - ordered >= top_p
    return dropped.scatter(-1, order, dropped)


class TokenSelector(ABC):
    """At work on one batch. The counters are of models beside the base: passes, bytes of cache."""

    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to models of its own; without one there is nothing to do."""
        return

    @abstractmethod
    def choose(
        self, state: HiddenStates, logits: Tensor, sampler: Sampler
    ) -> tuple[Tensor, HiddenStates | None]:
        """Tokens [rows] by the base's state [rows, 1, d] and logits [rows, vocab] before them;
        their own states, where choosing them took feeding them."""


class UnguidedSelector(TokenSelector):
    """The sampler's choice among the base's logits."""

    def choose(
        self, state: HiddenStates, logits: Tensor, sampler: Sampler
    ) -> tuple[Tensor, HiddenStates | None]:
        return sampler.choose(logits), None
