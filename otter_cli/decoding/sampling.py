"""From logits to a token: sampling settings, the sampler, and the interface of token selectors.

Each row draws from a generator of its own, so its text does not depend on the rest of the batch.
A token selector decides how a row's next token is chosen; guides have one of their own
(`guides/guide.py`).
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
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.results import ExternalModels


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.
    Each row's generator is seeded by `seed`, the prompt and the row's place among equal prompts, so
    the rest of the batch does not matter. Raises OtterError for values out of range."""

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
        for name, holds, allowed in bounds:
            if not holds:
                raise OtterError(f"{name} is {getattr(self, name)}", hint=f"it must be {allowed}")


class Sampler:
    """Chooses tokens for the rows of one batch."""

    def __init__(
        self,
        sampling: Sampling,
        prompts: list[list[int]],
        device: torch.device,
        earlier: Sequence[Sequence[int]] = (),
    ) -> None:
        """`earlier`: prompts of the same request in other batches, which count as earlier rows."""
        self.sampling = sampling
        counts: Counter[tuple[int, ...]] = Counter(map(tuple, earlier))
        self.generators = []
        for prompt in map(tuple, prompts):
            seed = derive_seed("sampling", sampling.seed, prompt, counts[prompt])
            self.generators.append(torch.Generator(device).manual_seed(seed))
            counts[prompt] += 1
        # Log-probabilities [rows] of the last pick; 0 for a greedy choice.
        self.last_logprobs = torch.zeros(len(prompts), dtype=torch.float64, device=device)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    def choose(self, logits: Tensor) -> Tensor:
        """Tokens [rows] from logits [rows, vocab]."""
        return self.pick(logits, self.uniform())

    def pick(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """Tokens [rows] from logits [rows, vocab], by what `uniform` has drawn before."""
        if uniform is None:
            return greedy_tokens(logits)
        probabilities = self.probabilities(logits)
        index = invert_cdf(probabilities, uniform)
        self.last_logprobs = probabilities.gather(-1, index[:, None])[:, 0].log()
        return index

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution to draw from: temperature, then top-k, then top-p (nucleus)."""
        scaled = logits.double() / self.sampling.temperature
        if self.sampling.top_k:
            kept = scaled.topk(min(self.sampling.top_k, scaled.shape[-1])).values[..., -1:]
            scaled = scaled.masked_fill(scaled < kept, -math.inf)
        if self.sampling.top_p < 1:
            scaled = scaled.masked_fill(outside_nucleus(scaled, self.sampling.top_p), -math.inf)
        return scaled.softmax(-1)

    def uniform(self) -> Tensor | None:
        """A number in [0, 1) for each row, [rows]; None for greedy decoding, which draws none."""
        return None if self.greedy else self.uniform_per_row()

    def uniform_per_row(self, rows: Tensor | None = None) -> Tensor:
        """The next number in [0, 1) of each row's generator, [rows]. With `rows` [rows] of
        booleans, only true rows draw, and the others get 0: how much a row draws must not depend on
        other rows."""
        numbers = torch.zeros(len(self.generators), dtype=torch.float64)
        for row, generator in enumerate(self.generators):
            if rows is None or rows[row]:
                numbers[row] = torch.rand(
                    (), generator=generator, dtype=torch.float64, device=generator.device
                )
        return numbers.to(self.generators[0].device)


def greedy_tokens(logits: Tensor) -> Tensor:
    """The first best token, [...] of [..., vocab]. torch's argmax of half precision takes five
    times as long as a conversion to single precision and its argmax, which choose the same."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    return (logits.float() if half else logits).argmax(-1)


def invert_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The index [rows] where the cumulative `probabilities` [rows, n] pass `uniform` [rows]."""
    cumulative = probabilities.cumsum(-1)
    reached = uniform.to(probabilities.dtype) * cumulative[:, -1]
    index = torch.searchsorted(cumulative, reached[:, None], right=True)
    return index.squeeze(-1).clamp(max=probabilities.shape[-1] - 1)


def outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Which tokens lie outside the smallest set with probability `top_p`, [..., vocab]."""
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    # The token that crosses the bound stays.
    dropped = ordered.cumsum(-1) - ordered >= top_p
    return dropped.scatter(-1, order, dropped)


class TokenSelector(ExternalModels, ABC):
    """Chooses the next tokens of one batch."""

    @abstractmethod
    def choose(
        self, state: HiddenStates, logits: Tensor, sampler: Sampler
    ) -> tuple[Tensor, HiddenStates | None]:
        """Tokens [rows] from the base's state [rows, 1, d] and logits [rows, vocab] before them.
        The second result is the tokens' own states [rows, 1, d], where choosing fed them
        already."""


class UnguidedSelector(TokenSelector):
    """The sampler's choice from the base's logits."""

    def choose(
        self, state: HiddenStates, logits: Tensor, sampler: Sampler
    ) -> tuple[Tensor, HiddenStates | None]:
        return sampler.choose(logits), None
