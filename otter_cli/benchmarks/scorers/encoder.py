"""Coherence by a local sentence encoder: how near a response lies to its prompt (METHOD, 5)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otter_cli.benchmarks.models import model_record
from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores
from otter_cli.core.errors import OtterError


class EncoderScorer:
    """Cosine of the embeddings of prompt and response; an empty response has none: 0.

    `folder`: any encoder that transformers loads. States are averaged over tokens, or the first
    token's are taken where the folder's 1_Pooling/config.json (sentence-transformers) says so.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from transformers import AutoTokenizer

        self._model = _load(folder).to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._first = _takes_the_first(folder)
        record = model_record(folder, "encoder")
        self.record = ScorerRecord(
            name=record.name, kind=record.kind, digest=record.weights, labels=["coherence"]
        )

    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        return {"coherence": [self._cosine(e.prompt, e.response) for e in exchanges]}

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


def _load(folder: Path) -> Any:
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise OtterError(f"{folder} is no encoder: it has no config.json", hint="a local folder")
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    # A pooler is not read.
    missing = sorted(key for key in map(str, info["missing_keys"]) if "pooler" not in key)
    if missing:
        raise OtterError(
            f"{folder} lacks {len(missing)} tensors of its encoder, {missing[0]} first",
            hint="transformers would fill them at random; the folder is not whole",
        )
    return model


def _takes_the_first(folder: Path) -> bool:
    pooling = folder / "1_Pooling" / "config.json"
    return pooling.is_file() and json.loads(pooling.read_text())["pooling_mode_cls_token"]
