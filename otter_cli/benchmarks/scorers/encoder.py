"""Coherence by a local sentence encoder: how near a response lies to its prompt (METHOD, 5)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from otter_cli.benchmarks.models import model_record
from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.model.pretrained import load_tokenizer
from otter_cli.scorers.load import load_encoder, scorer_folder


class EncoderScorer:
    """Cosine of the embeddings of prompt and response; an empty response has none: 0.

    `folder`: any encoder that transformers loads. States are averaged over tokens, or the first
    token's are taken where the folder's 1_Pooling/config.json (sentence-transformers) says so.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        folder = scorer_folder(folder)
        self._model = load_encoder(folder, device=device)
        self._tokenizer = load_tokenizer(folder)
        self._first = _takes_the_first(folder)
        record = model_record(folder, "encoder")
        self.record = ScorerRecord(
            name=record.name, kind=record.kind, digest=record.weights, labels=["coherence"]
        )

    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        return {"coherence": [self._cosine(e.question, e.response) for e in exchanges]}

    def _cosine(self, prompt: str, response: str) -> float:
        if not response.strip():
            return 0.0
        one, other = self._embedding(prompt), self._embedding(response)
        return float(torch.nn.functional.cosine_similarity(one, other, dim=0))

    @torch.inference_mode()
    def _embedding(self, text: str) -> Tensor:
        """[d]; one text a pass, so that no padding moves it."""
        longest = getattr(self._model.config, "max_position_embeddings", None)
        ids = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
        state = self._model(input_ids=ids.input_ids.to(self._model.device)).last_hidden_state[0]
        return state[0] if self._first else state.mean(0)


def _takes_the_first(folder: Path) -> bool:
    pooling = folder / "1_Pooling" / "config.json"
    return pooling.is_file() and bool(read_object(pooling)["pooling_mode_cls_token"])
