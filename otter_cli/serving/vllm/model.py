"""Grafted models as vLLM runs them: its own model classes, with streams beside their layers.

The hidden state that the engine carries from the layers to the logits is [y ; v ...], so that
signals follow their rows through chunking, batching and CUDA graphs by the engine's own means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from otter_cli.families import base_shape
from otter_cli.insertion import Plan
from otter_cli.serving.vllm.layer import run_layer
from otter_cli.serving.vllm.layout import Layout
from otter_cli.serving.vllm.numbers import Numbers
from otter_cli.serving.vllm.pooling import make_pooler
from otter_cli.serving.vllm.served import (
    check_engine,
    check_folder,
    name_compiled,
    read_insertions,
    register_model,
)
from otter_cli.serving.vllm.stream import Stream
from otter_cli.serving.vllm.weights import check_stored
from otter_cli.signals import HEADS


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": -1,
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
    }
)
class GraftedModel(nn.Module):
    """Takes the place of a stock vLLM model whose modules it calls."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", base: Any) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens: Any = base.embed_tokens
        self.layers: Any = base.layers
        self.norm: Any = base.norm
        self.make_empty_intermediate_tensors = base.make_empty_intermediate_tensors
        self.mapper, self.shape = base.hf_to_vllm_mapper, base_shape(config.to_dict())
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        engine = {
            "cache_config": vllm_config.cache_config,
            "quant_config": vllm_config.quant_config,
        }
        layers = dict(enumerate(self.layers))
        streams = [
            Stream(Layout(one, self.shape, ranks, rank), layers, prefix, **engine)
            for one in read_insertions(config)
        ]
        self.streams = cast(list[Stream], nn.ModuleList(streams))
        name_compiled(vllm_config, [one.described for one in streams])

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual: Tensor | None = None
        states = [stream.start(input_ids, hidden) for stream in self.streams]
        waiting = {n: s.waiting for n, s in enumerate(self.streams) if s.waiting is not None}
        turns = {n: layers.turn(self.layers, positions) for n, layers in waiting.items()}
        held: dict[int, list[Tensor]] = {n: [] for n in waiting}
        for index, layer in enumerate(self.layers):
            hidden, residual, states, taps = run_layer(
                layer, index, self.streams, positions, hidden, residual, states
            )
            for n, layers in waiting.items():
                if index in layers.order:
                    held[n] += taps
                if index in layers.groups:
                    states[n] = layers.behind(index, states[n], held[n], positions, turns[n])
                    held[n] = []
        hidden, h = self.norm(hidden, residual)
        read = [s.end(z, h) for s, z in zip(self.streams, states, strict=True) if s.hidden]
        return torch.cat([hidden, *read], -1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        from vllm.model_executor.models.utils import AutoWeightsLoader

        return AutoWeightsLoader(self).load_weights(weights, mapper=self.mapper)

    def load_inserted(self, stored: dict[str, Tensor]) -> set[str]:
        """Names of the parameters that were filled. Raises OtterError for any other tensor."""
        check_stored(stored, [Plan(stream.config, self.shape) for stream in self.streams])
        for stream in self.streams:
            prefix = f"otter.{stream.config.name}."
            stream.load(
                {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
            )
        return {name for name, _ in self.named_parameters() if name.startswith("streams.")}


@dataclass
class Step:
    """What the last `compute_logits` saw, a row for each: y [rows, d], and v by insertion."""

    base_state: Tensor
    inserted: dict[str, Tensor | None]


class EngineHead:
    """`signals.Unembedding` of an engine, whose output matrix may be packed or spread over ranks:
    rows of it are not to be had."""

    def __init__(self, compute_logits: Callable[[Tensor], Tensor]) -> None:
        self.logits = self.product = compute_logits

    def rows(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("an engine's output matrix is used as a whole")


class Grafted:
    """Mixed into a stock `...ForCausalLM`."""

    model: GraftedModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_engine(vllm_config)
        check_folder(vllm_config.model_config.model)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        inner = f"{prefix}.model" if prefix else "model"
        self.model = GraftedModel(vllm_config=vllm_config, prefix=inner, base=self.model)
        self.step: Step | None = None
        self.signals = {s.name: (one, s) for one in self.model.streams for s in one.config.signals}
        # Read at every step: a ParameterDict takes its time to list what it holds.
        self.heads = {n: dict(one.signals[n].items()) for n, (one, _) in self.signals.items()}
        numbers = Numbers(signal for _, signal in self.signals.values())
        # vLLM's class for pooling, made of this one, keeps a pooler that is there already.
        self.pooler = make_pooler(vllm_config, numbers, self.score_texts)
        self.scoring = list(dict.fromkeys(number.signal for number in numbers.of_texts))
        register_model(vllm_config, self)

    def ask(self, rows: tuple[int, ...]) -> None:
        """Which sequences of the next batches want numbers; before it is called, all of them."""
        for stream in self.model.streams:
            if stream.waiting is not None:
                stream.waiting.asking = rows

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        self.step = self.split(hidden_states)
        return super().compute_logits(self.step.base_state)  # type: ignore[misc]

    def split(self, hidden_states: Tensor) -> Step:
        """[y ; v ...] apart; y contiguous, as stock: a strided view may be summed otherwise."""
        d, at = self.model.shape.hidden, self.model.shape.hidden
        inserted: dict[str, Tensor | None] = {}
        for stream in self.model.streams:
            width = stream.hidden
            inserted[stream.config.name] = hidden_states[..., at : at + width] if width else None
            at += width
        return Step(hidden_states[..., :d].contiguous(), inserted)

    def score_texts(self, hidden_states: Tensor) -> Tensor:
        """`Numbers.of_texts` of each row, [rows, numbers]."""
        step = self.split(hidden_states)
        found = [self.read_signal(name, step, slice(None)) for name in self.scoring]
        return torch.cat([scores.reshape(len(scores), -1) for scores in found], -1)

    def read_signal(self, name: str, step: Step, rows: Tensor | slice) -> Tensor:
        """The head of signal `name` over chosen rows of a step, in fp32: [rows, ...]."""
        owner, signal = self.signals[name]
        inserted = step.inserted[owner.config.name]
        scores = HEADS[signal.kind].forward(
            signal,
            self.heads[name],
            step.base_state[rows],
            None if inserted is None else inserted[rows],
            EngineHead(super().compute_logits),  # type: ignore[misc]
        )
        return scores.float()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        inserted: dict[str, Tensor] = {}

        def of_the_base() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith("otter."):
                    inserted[name] = tensor
                else:
                    yield name, tensor

        loaded: set[str] = super().load_weights(of_the_base())  # type: ignore[misc]
        return loaded | {f"model.{name}" for name in self.model.load_inserted(inserted)}


class OtterLlamaForCausalLM(Grafted, LlamaForCausalLM):
    """Llama."""


class OtterMistralForCausalLM(Grafted, MistralForCausalLM):
    """Mistral."""


class OtterQwen2ForCausalLM(Grafted, Qwen2ForCausalLM):
    """Qwen2."""


class OtterQwen3ForCausalLM(Grafted, Qwen3ForCausalLM):
    """Qwen3."""
