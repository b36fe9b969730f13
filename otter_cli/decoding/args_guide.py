"""ARGS (Khanov et al., arXiv 2402.01694, section 2): guidance by a separate reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.choosing import Chooser, check_guidance, steered
from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.session import DecodingSession, RewardSession
from otter_cli.decoding.state import State


@dataclass(frozen=True)
class ArgsGuide:
    """`logit + strength * r([x, y, v])` over the top k by logits; argmax, or a draw from the k.

    Costs a pass of the reward model for each token, and its cache. Fair to it: its k candidates
    are one step of k tokens over a cached prefix, as the insertion's are, not k rows.
    """

    reward_model: Any
    strength: float
    candidates: int = 10

    needs_stream = False

    def bind(self, session: DecodingSession) -> Chooser:
        """Raises OtterError where the reward model reads another vocabulary, or gives more than
        one number."""
        config, vocab = self.reward_model.config, session.model.shape.vocab
        check_guidance(self.strength, self.candidates, vocab)
        if config.vocab_size != vocab:
            raise OtterError(
                f"the reward model's vocabulary has {config.vocab_size} tokens, the base's {vocab}",
                hint="ARGS scores the base's own tokens: train it from the same base",
            )
        if config.num_labels != 1:
            raise OtterError(
                f"the reward model gives {config.num_labels} numbers, and a reward is one",
                hint="use a model with num_labels 1",
            )
        return _ByRewardModel(self)


class _ByRewardModel(Chooser):
    def __init__(self, guide: ArgsGuide) -> None:
        self.guide, self.rewards = guide, RewardSession(guide.reward_model)

    def prefill(self, prompts: list[list[int]]) -> None:
        self.rewards.prefill(prompts)

    def choose(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State | None]:
        top = logits.topk(self.guide.candidates, -1)
        rewards = self.rewards.rewards(self.rewards.branch(top.indices))
        index = sampler.choose(steered(top.values, self.guide.strength, rewards))
        self.rewards.choose(index)
        self.external_passes = self.rewards.passes
        self.external_bytes = self.rewards.cache_bytes()
        return top.indices.gather(1, index[:, None])[:, 0], None
