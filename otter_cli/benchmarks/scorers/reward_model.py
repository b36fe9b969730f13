"""A separate reward model as a scorer: one text a pass, so that no padding moves its scores."""

from collections.abc import Sequence
from typing import Any

import torch

from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores
from otter_cli.benchmarks.settings import ModelRecord
from otter_cli.data.encoding import Encoder


class RewardModelScorer:
    """The score of prompt and response together, EOS appended as in training."""

    def __init__(self, model: Any, tokenizer: Any, record: ModelRecord) -> None:
        self.record = ScorerRecord(
            name=record.name, kind=record.kind, digest=record.weights, labels=["reward"]
        )
        self._model = model
        positions = getattr(model.config, "max_position_embeddings", 1 << 20)
        self._encode = Encoder(tokenizer, positions, eos=tokenizer.eos_token_id is not None)

    @torch.inference_mode()
    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        rewards = []
        for ids in self._encode([e.prompt + e.response for e in exchanges]).ids:
            tokens = torch.tensor([ids], device=self._model.device)
            mask = torch.ones_like(tokens)
            rewards.append(self._model(input_ids=tokens, attention_mask=mask).logits[0, 0].item())
        return {"reward": rewards}
