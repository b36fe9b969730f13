"""The plugin's entry point: vLLM calls it in each of its processes before it looks at a model."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID

# Architecture of the base, by the family's name.
STOCK_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MODULE = "otter_cli.serving.vllm.model"


def grafted_architecture(family: str) -> str:
    """Our architecture for a family."""
    return f"Otter{STOCK_ARCHITECTURES[family]}"


def register() -> None:
    """Names the grafted architectures, and adds signals to what the sampler gives back."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    from otter_cli.serving.vllm.engine_checks import ANNOUNCED_SIGNALS, signal_outputs_of

    class Announce(VerifyAndUpdateConfig):
        """Tells the process that answers clients which signals there are."""

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            ANNOUNCED_SIGNALS["graft"] = signal_outputs_of(model_config.hf_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            if vllm_config.speculative_config is not None:
                ANNOUNCED_SIGNALS["graft"] = None

    for family in STOCK_ARCHITECTURES:
        name = grafted_architecture(family)
        ModelRegistry.register_model(name, f"{_MODULE}:{name}")
        MODELS_CONFIG_MAP[name] = Announce
    _extend_sampler()
    _extend_decoder()


def _extend_sampler() -> None:
    """vLLM has no interface for a number beside a token, so its sampler's answer is extended."""
    from vllm.v1.sample.sampler import Sampler

    stock = Sampler.forward
    if hasattr(stock, "__wrapped__"):
        return
    if list(inspect.signature(stock).parameters)[:3] != ["self", "logits", "sampling_metadata"]:
        raise OtterError(
            "this vLLM's sampler is not the one that the plugin extends",
            hint="it was made for vLLM 0.32",
        )

    @functools.wraps(stock)
    def forward(self: Any, logits: Any, sampling_metadata: Any, *rest: Any, **named: Any) -> Any:
        mine = _processor(sampling_metadata)
        if mine is None or sampling_metadata.max_num_logprobs is None:
            return stock(self, logits, sampling_metadata, *rest, **named)
        # The best tokens of a vocabulary are dear to find, and log-probabilities are not free:
        # here nobody asked for them.
        labels = sampling_metadata.logprob_token_ids  # of tokens that somebody named
        if mine.alone and not labels and self.logprobs_mode == "raw_logprobs":
            logprobs = self.compute_logprobs(logits) if mine.scored else None
            asked = dataclasses.replace(sampling_metadata, max_num_logprobs=None)
            out = stock(self, logits, asked, *rest, **named)
            out.logprobs_tensors = mine.numbers_alone(logprobs, out.sampled_token_ids[:, 0])
            return out
        out = stock(self, logits, sampling_metadata, *rest, **named)
        out.logprobs_tensors = mine.add_numbers(out.logprobs_tensors, out.sampled_token_ids[:, 0])
        return out

    Sampler.forward = forward


def _extend_decoder() -> None:
    """The id of a number is no token's, so no tokenizer is asked what it reads as; and a token is
    read once, which costs more than its number does."""
    from vllm.v1.engine import logprobs

    stock = logprobs.convert_ids_list_to_tokens
    if hasattr(stock, "__wrapped__"):
        return

    @functools.lru_cache(maxsize=1 << 16)
    def read(tokenizer: Any, token: int) -> str:
        return stock(tokenizer, [token])[0]

    @functools.wraps(stock)
    def convert(tokenizer: Any, token_ids: list[int]) -> list[str]:
        if all(token < FIRST_VIRTUAL_ID for token in token_ids):
            return stock(tokenizer, token_ids)
        return [read(tokenizer, token) if token < FIRST_VIRTUAL_ID else "" for token in token_ids]

    logprobs.convert_ids_list_to_tokens = convert


def _processor(sampling_metadata: Any) -> Any:
    from otter_cli.serving.vllm.processor import OtterProcessor

    for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
        if isinstance(processor, OtterProcessor):
            return processor
    return None
