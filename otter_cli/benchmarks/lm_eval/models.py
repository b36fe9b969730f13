"""`otter` and `otter-guided`: models of the harness, so that its tasks run on a graft.

lm-eval run --model otter --model_args pretrained=OUT --tasks ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import check_scoring_signal
from otter_cli.model.load import load_tokenizer
from otter_cli.model.otter import OtterForCausalLM


class OtterLM(HFLM):
    """The graft's base with the inserted streams running. Its answers are the base's, bit for bit.

    `pretrained`: a grafted folder, or an adapter with its `base`. Other arguments are HFLM's.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        base: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        self.otter = OtterForCausalLM.from_pretrained(
            pretrained,
            base=base,
            dtype=None if dtype in (None, "auto") else getattr(torch, dtype),
            device=device or "cpu",
        )
        whole = base if base is not None and not (Path(pretrained) / "config.json").exists() else ""
        tokenizer = load_tokenizer(whole or pretrained)
        super().__init__(pretrained=self.otter.base, tokenizer=tokenizer, **arguments)

    def _model_call(self, *arguments: Any, **named: Any) -> Tensor:
        with self.otter.streaming():
            return super()._model_call(*arguments, **named)

    def _model_generate(self, *arguments: Any, **named: Any) -> Tensor:
        with self.otter.streaming():
            return super()._model_generate(*arguments, **named)


class OtterGuidedLM(OtterLM):
    """Generates under guidance by one of the graft's signals (docs/method.md, "Guided decoding").
    Guided decoding chooses tokens and gives no distribution: tasks of log-likelihoods are refused.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        signal: str = "reward",
        strength: float | str = 1.0,
        candidates: int | str = 10,
        seed: int | str = 0,
        **arguments: Any,
    ) -> None:
        super().__init__(pretrained, **arguments)
        check_scoring_signal(self.otter, signal)
        # The harness's command line may pass every argument as text.
        self.guide = SignalGuide(signal, float(strength), int(candidates))
        self.seed = int(seed)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise _no_likelihood()

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise _no_likelihood()

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: Tensor | None = None,
        **generation: Any,
    ) -> Tensor:
        """Token ids [rows, max_length], filled up with end tokens. The harness cuts at `stop`."""
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        prompts = [row[kept.bool()].tolist() for row, kept in zip(context, mask, strict=True)]
        sampling = sampling_of_harness(generation, max_length - context.shape[1], self.seed)
        rows = generate(self.otter, prompts, sampling, guide=self.guide)
        filled = torch.full((len(rows), max_length), self.eot_token_id, device=context.device)
        filled[:, : context.shape[1]] = context
        for index, row in enumerate(rows):
            stopped = context.shape[1] + len(row.tokens)
            filled[index, context.shape[1] : stopped] = torch.tensor(row.tokens)
        return filled


def sampling_of_harness(generation: dict[str, Any], new_tokens: int, seed: int) -> Sampling:
    """Sampling from the harness's arguments of `generate`. Raises OtterError for an unknown one."""
    known = {"do_sample", "temperature", "top_k", "top_p"}
    if unknown := sorted(generation.keys() - known):
        raise OtterError(
            f"the task asks for {unknown[0]} in generation, which guided decoding does not have",
            hint=f"it has {', '.join(sorted(known))}",
        )
    sample = generation.get("do_sample", True)
    temperature = float(generation.get("temperature") or 0.0) if sample else 0.0
    return Sampling(
        new_tokens,
        temperature,
        top_k=int(generation.get("top_k") or 0),
        top_p=float(generation.get("top_p") or 1.0),
        seed=seed,
    )


def _no_likelihood() -> OtterError:
    return OtterError(
        "guided decoding has no log-likelihoods: it chooses among the base's best tokens",
        hint="tasks of output type generate_until take it; for the others use the model `otter`",
    )
