"""From logits to a token: greedy, or a draw from each row's own generator."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from otter_cli.core.seeds import derive_seed
from otter_cli.decoding.types import Sampling


class Sampler:
    """Chooses tokens for the rows of one batch."""

    def __init__(self, sampling: Sampling, prompts: list[list[int]], device: torch.device) -> None:
        self.sampling = sampling
        seen: Counter[tuple[int, ...]] = Counter()
        self.generators = []
        for prompt in map(tuple, prompts):
            seed = derive_seed("sampling", sampling.seed, prompt, seen[prompt])
            self.generators.append(torch.Generator(device).manual_seed(seed))
            seen[prompt] += 1

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    def choose(self, logits: Tensor) -> Tensor:
        """Tokens [rows] from logits [rows, vocab]."""
        if self.greedy:
            return logits.argmax(-1)
        return self.draw(self.probabilities(logits))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from: temperature, then top-k, then top-p (nucleus)."""
        scaled = logits.double() / self.sampling.temperature
        if self.sampling.top_k:
            kept = scaled.topk(min(self.sampling.top_k, scaled.shape[-1])).values[..., -1:]
            scaled = scaled.masked_fill(scaled < kept, -math.inf)
        if self.sampling.top_p < 1:
            ordered, order = scaled.softmax(-1).sort(-1, descending=True)
            # The token that crosses the bound stays.
            dropped = ordered.cumsum(-1) - ordered >= self.sampling.top_p
            scaled = scaled.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)
        return scaled.softmax(-1)

    def draw(self, probabilities: Tensor) -> Tensor:
        """One index a row of [rows, n], by inversion: one uniform number from each generator."""
        uniform = self.uniform().to(probabilities.dtype)
        cumulative = probabilities.cumsum(-1)
        index = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        return index.squeeze(-1).clamp(max=probabilities.shape[-1] - 1)

    def uniform(self) -> Tensor:
        """A number in [0, 1) for each row, [rows]."""
        drawn = [
            torch.rand((), generator=generator, dtype=torch.float64, device=generator.device)
            for generator in self.generators
        ]
        return torch.stack(drawn)
