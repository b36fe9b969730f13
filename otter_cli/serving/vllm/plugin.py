"""The plugin's entry point: vLLM calls it in each of its processes before it looks at a model."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID, TOKEN_ID_PREFIX

# Architecture of the base, by the family's name.
STOCK_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MODULE = "otter_cli.serving.vllm.model"


def grafted_architecture(family: str) -> str:
    """The name of our model class for a family."""
    return f"Otter{STOCK_ARCHITECTURES[family]}"


def register() -> None:
    """Registers the grafted architectures, and adds signals to the sampler's output."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    from otter_cli.serving.vllm.engine_checks import ANNOUNCED_SIGNALS, signal_outputs_of

    class Announce(VerifyAndUpdateConfig):
        """Makes the signals known in the process that answers clients."""

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
    _extend_detokenizer()


def _extend_sampler() -> None:
    """Wraps the sampler's `forward`: vLLM has no interface for numbers beside a token."""
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
        processor = _processor(sampling_metadata)
        if processor is None or sampling_metadata.max_num_logprobs is None:
            return stock(self, logits, sampling_metadata, *rest, **named)
        # Without a request for the best tokens, the sampler is not asked for log-probabilities:
        # finding the best of a vocabulary is slow.
        named_tokens = sampling_metadata.logprob_token_ids
        if processor.only_outputs and not named_tokens and self.logprobs_mode == "raw_logprobs":
            logprobs = self.compute_logprobs(logits) if processor.logprob_rows else None
            reduced = dataclasses.replace(sampling_metadata, max_num_logprobs=None)
            out = stock(self, logits, reduced, *rest, **named)
            sampled = out.sampled_token_ids[:, 0]
            out.logprobs_tensors = processor.outputs_without_best(logprobs, sampled)
            return out
        out = stock(self, logits, sampling_metadata, *rest, **named)
        sampled = out.sampled_token_ids[:, 0]
        out.logprobs_tensors = processor.add_outputs(out.logprobs_tensors, sampled)
        return out

    Sampler.forward = forward


def _extend_detokenizer() -> None:
    """Wraps the conversion of token ids to text: a signal output's id, which no tokenizer knows, is
    written as a number, and a token is converted once and cached, because conversion costs more
    than a signal output."""
    from vllm.v1.engine import logprobs

    stock = logprobs.convert_ids_list_to_tokens
    if hasattr(stock, "__wrapped__"):
        return

    @functools.lru_cache(maxsize=1 << 16)
    def text_of(tokenizer: Any, token: int) -> str:
        return stock(tokenizer, [token])[0]

    @functools.wraps(stock)
    def convert(tokenizer: Any, token_ids: list[int]) -> list[str]:
        if all(token < FIRST_VIRTUAL_ID for token in token_ids):
            return stock(tokenizer, token_ids)
        return [
            text_of(tokenizer, token) if token < FIRST_VIRTUAL_ID else f"{TOKEN_ID_PREFIX}{token}"
            for token in token_ids
        ]

    logprobs.convert_ids_list_to_tokens = convert


def _processor(sampling_metadata: Any) -> Any:
    from otter_cli.serving.vllm.processor import OtterProcessor

    for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
        if isinstance(processor, OtterProcessor):
            return processor
    return None
