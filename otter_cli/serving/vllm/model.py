"""Grafted models as vLLM runs them: its own model classes, with streams beside their layers.

The hidden state that the engine carries from the layers to the logits is [y ; v ...], so that
signals follow their rows through chunking, batching and CUDA graphs by the engine's own means. vLLM
finds the classes at the end by module path and name, as `plugin.py` registers them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.pooler.seqwise.heads import ClassifierPoolerHead
from vllm.model_executor.layers.pooler.seqwise.methods import get_seq_pooling_method
from vllm.model_executor.layers.pooler.seqwise.poolers import SequencePooler
from vllm.model_executor.layers.pooler.special import DispatchPooler
from vllm.model_executor.layers.pooler.tokwise.heads import TokenClassifierPoolerHead
from vllm.model_executor.layers.pooler.tokwise.methods import get_tok_pooling_method
from vllm.model_executor.layers.pooler.tokwise.poolers import TokenPooler
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import base_shape
from otter_cli.graft.plan import Plan
from otter_cli.serving.vllm.engine_checks import (
    add_to_compile_key,
    check_engine,
    check_export_folder,
    check_inserted_tensors,
    read_insertions,
    register_model,
)
from otter_cli.serving.vllm.rank_layout import RankLayout
from otter_cli.serving.vllm.requests import SignalOutputs
from otter_cli.serving.vllm.stream import EngineStream
from otter_cli.signals.heads import HEADS, HeadInputs


def run_layer(
    layer: Any,
    index: int,
    streams: Sequence[EngineStream],
    positions: Tensor,
    hidden: Tensor,
    residual: Tensor | None,
    states: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The layer's (hidden, residual), every stream's z [tokens, D], and the activations that
    deferred streams read: normed h, attention's output, normed h again, m."""
    if residual is None:
        x, h = layer.input_layernorm(hidden), hidden
    else:
        x, h = layer.input_layernorm(hidden, residual)
    attention, mlp = layer.self_attn, layer.mlp
    # A stream without inserted parts in this layer keeps its z.
    by_stream = {number: stream.layer(index) for number, stream in enumerate(streams)}
    parts = {number: pair for number, pair in by_stream.items() if pair is not None}
    heads, states = _query_key_value(attention, positions, x), list(states)
    inputs = {
        number: inserted.prepare(states[number], x, h, positions, attention.rotary_emb)
        for number, (inserted, _) in parts.items()
    }
    taps, a = [x], attention.attn(*heads)
    outputs = {
        number: inserted.attention_output(inputs[number]) for number, (inserted, _) in parts.items()
    }
    for number, (inserted, _) in parts.items():
        states[number] = inserted.out(states[number], a, outputs[number])
    out, _ = attention.o_proj(a)
    x, h = layer.post_attention_layernorm(out, h)
    m = mlp.act_fn(mlp.gate_up_proj(x)[0])
    for number, (_, ffn) in parts.items():
        states[number] = ffn(states[number], x, h, m)
    out, _ = mlp.down_proj(m)
    return out, h, states, [*taps, a, x, m]


def _query_key_value(attention: Any, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated query and key, and value, each [tokens, heads * head_dim]."""
    qkv, _ = attention.qkv_proj(x)
    q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], -1)
    if hasattr(attention, "q_norm"):
        by_head = (-1, attention.head_dim)
        q = attention.q_norm(q.unflatten(-1, by_head)).view(q.shape)
        k = attention.k_norm(k.unflatten(-1, by_head)).view(k.shape)
    q, k = attention.rotary_emb(positions, q, k)
    return q, k, v


def make_pooler(
    vllm_config: VllmConfig, outputs: SignalOutputs, scores: Callable[[Tensor], Tensor]
) -> DispatchPooler | None:
    """The pooler of an engine that scores texts; None for an engine that generates. `scores`:
    [rows, y and v] to [rows, outputs]. `/classify` reads the last token, `/pooling` every token.
    Raises OtterError where no signal scores a text."""
    if vllm_config.model_config.runner_type != "pooling":
        return None
    if not outputs.text_outputs:
        raise OtterError(
            "no signal of this graft scores a text",
            hint="value and classes do: otter graft --signal reward; vocabulary signals score "
            "next tokens, beside generated ones",
        )
    last, every = get_seq_pooling_method("LAST"), get_tok_pooling_method("ALL")
    return DispatchPooler(
        {
            "classify": SequencePooler(last, ClassifierPoolerHead(scores)),
            "token_classify": TokenPooler(every, TokenClassifierPoolerHead(scores)),
        }
    )


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": -1,
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
    }
)
class GraftedModel(nn.Module):
    """Takes the place of a stock vLLM model and calls its modules."""

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
            EngineStream(RankLayout(insertion, self.shape, ranks, rank), layers, prefix, **engine)
            for insertion in read_insertions(config)
        ]
        self.streams = cast(list[EngineStream], nn.ModuleList(streams))
        add_to_compile_key(vllm_config, [stream.compile_key for stream in streams])

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
        states = [stream.embed(input_ids, hidden) for stream in self.streams]
        deferred = {n: s.deferred for n, s in enumerate(self.streams) if s.deferred is not None}
        cos_sin = {n: layers.cos_sin(self.layers, positions) for n, layers in deferred.items()}
        taps_by_stream: dict[int, list[Tensor]] = {n: [] for n in deferred}
        for index, layer in enumerate(self.layers):
            hidden, residual, states, taps = run_layer(
                layer, index, self.streams, positions, hidden, residual, states
            )
            for n, layers in deferred.items():
                if index in layers.order:
                    taps_by_stream[n] += taps
                if index in layers.groups:
                    states[n] = layers.run_group(
                        index, states[n], taps_by_stream[n], positions, cos_sin[n]
                    )
                    taps_by_stream[n] = []
        hidden, h = self.norm(hidden, residual)
        inserted = [
            stream.final_norm(z, h)
            for stream, z in zip(self.streams, states, strict=True)
            if stream.hidden
        ]
        return torch.cat([hidden, *inserted], -1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        from vllm.model_executor.models.utils import AutoWeightsLoader

        return AutoWeightsLoader(self).load_weights(weights, mapper=self.mapper)

    def load_inserted(self, stored: dict[str, Tensor]) -> set[str]:
        """Loads the inserted tensors; the names of the parameters that were filled. Raises
        OtterError for a missing, an unexpected or a misshapen tensor."""
        check_inserted_tensors(stored, [Plan(stream.config, self.shape) for stream in self.streams])
        for stream in self.streams:
            stream.load(stored)
        return {name for name, _ in self.named_parameters() if name.startswith("streams.")}


@dataclass
class StepStates:
    """The rows of the last `compute_logits`: y [rows, d], and v [rows, D] by insertion."""

    base_state: Tensor
    inserted: dict[str, Tensor | None]


class EngineUnembedding:
    """`signals.Unembedding` for an engine, whose output matrix may be packed or spread over ranks,
    so that single rows of it cannot be read."""

    def __init__(self, compute_logits: Callable[[Tensor], Tensor]) -> None:
        self.logits = self.product = compute_logits

    def rows(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("an engine's output matrix is used as a whole")


class GraftedForCausalLM:
    """Mixed into a stock `...ForCausalLM`."""

    model: GraftedModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_engine(vllm_config)
        check_export_folder(vllm_config.model_config.model)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        inner = f"{prefix}.model" if prefix else "model"
        self.model = GraftedModel(vllm_config=vllm_config, prefix=inner, base=self.model)
        self.last_step: StepStates | None = None
        streams = self.model.streams
        self.signals = {s.name: (stream, s) for stream in streams for s in stream.config.signals}
        # Plain dictionaries, because listing a ParameterDict at every step is slow.
        self.heads = {n: dict(stream.signals[n].items()) for n, (stream, _) in self.signals.items()}
        outputs = SignalOutputs(signal for _, signal in self.signals.values())
        # vLLM derives a class for pooling from this one; it keeps a pooler that is set already.
        self.pooler = make_pooler(vllm_config, outputs, self.score_texts)
        self.text_signals = list(dict.fromkeys(output.signal for output in outputs.text_outputs))
        register_model(vllm_config, self)

    def request_rows(self, rows: tuple[int, ...]) -> None:
        """Which sequences of the next batches want signals. Without a call, all of them do."""
        for stream in self.model.streams:
            if stream.deferred is not None:
                stream.deferred.requested_rows = rows

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        self.last_step = self.split(hidden_states)
        return super().compute_logits(self.last_step.base_state)  # type: ignore[misc]

    def split(self, hidden_states: Tensor) -> StepStates:
        """Splits [y ; v ...]. y is contiguous, as in stock vLLM: a strided view may be summed in
        another order."""
        start = d = self.model.shape.hidden
        inserted: dict[str, Tensor | None] = {}
        for stream in self.model.streams:
            end = start + stream.hidden
            v = hidden_states[..., start:end] if stream.hidden else None
            inserted[stream.config.name], start = v, end
        return StepStates(hidden_states[..., :d].contiguous(), inserted)

    def score_texts(self, hidden_states: Tensor) -> Tensor:
        """`SignalOutputs.text_outputs` of each row, [rows, outputs]."""
        step = self.split(hidden_states)
        scores = [self.read_signal(name, step, slice(None)) for name in self.text_signals]
        return torch.cat([each.reshape(len(each), -1) for each in scores], -1)

    def read_signal(self, name: str, step: StepStates, rows: Tensor | slice) -> Tensor:
        """The head of signal `name` over the given rows of a step, in fp32: [rows, ...]."""
        stream, signal = self.signals[name]
        inserted = step.inserted[stream.config.name]
        inputs = HeadInputs(
            signal,
            self.heads[name],
            step.base_state[rows],
            None if inserted is None else inserted[rows],
            EngineUnembedding(super().compute_logits),  # type: ignore[misc]
        )
        return HEADS[signal.kind].forward(inputs).float()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        inserted: dict[str, Tensor] = {}

        def base_weights() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith("otter."):
                    inserted[name] = tensor
                else:
                    yield name, tensor

        loaded: set[str] = super().load_weights(base_weights())  # type: ignore[misc]
        return loaded | {f"model.{name}" for name in self.model.load_inserted(inserted)}


class OtterLlamaForCausalLM(GraftedForCausalLM, LlamaForCausalLM):
    """Llama."""


class OtterMistralForCausalLM(GraftedForCausalLM, MistralForCausalLM):
    """Mistral."""


class OtterQwen2ForCausalLM(GraftedForCausalLM, Qwen2ForCausalLM):
    """Qwen2."""


class OtterQwen3ForCausalLM(GraftedForCausalLM, Qwen3ForCausalLM):
    """Qwen3."""
