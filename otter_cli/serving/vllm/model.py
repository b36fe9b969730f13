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
from otter_cli.signals.heads import HEADS


def run_layer(
    layer: Any,
    index: int,
    streams: Sequence[EngineStream],
    positions: Tensor,
    hidden: Tensor,
    residual: Tensor | None,
    states: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The layer's (hidden, residual), every stream's z [tokens, D], and what streams read that
    wait: the branches' inputs, attention's output and m."""
    if residual is None:
        x, h = layer.input_layernorm(hidden), hidden
    else:
        x, h = layer.input_layernorm(hidden, residual)
    attention, mlp = layer.self_attn, layer.mlp
    # Streams without inserted parts here pass their z on.
    beside = {number: s.layer(index) for number, s in enumerate(streams)}
    here = {number: parts for number, parts in beside.items() if parts is not None}
    heads, states = _query_key_value(attention, positions, x), list(states)
    asked = {
        number: one.ask(states[number], x, h, positions, attention.rotary_emb)
        for number, (one, _) in here.items()
    }
    taps, a = [x], attention.attn(*heads)
    found = {number: one.attended(asked[number]) for number, (one, _) in here.items()}
    for number, (one, _) in here.items():
        states[number] = one.out(states[number], a, found[number])
    out, _ = attention.o_proj(a)
    x, h = layer.post_attention_layernorm(out, h)
    m = mlp.act_fn(mlp.gate_up_proj(x)[0])
    for number, (_, ffn) in here.items():
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
    vllm_config: VllmConfig, numbers: SignalOutputs, scores: Callable[[Tensor], Tensor]
) -> DispatchPooler | None:
    """None for an engine that generates. `scores`: [rows, y and v] to [rows, numbers].

    `/classify` reads the last token, `/pooling` every one. Raises OtterError where no signal scores
    a text.
    """
    if vllm_config.model_config.runner_type != "pooling":
        return None
    if not numbers.of_texts:
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
            EngineStream(RankLayout(one, self.shape, ranks, rank), layers, prefix, **engine)
            for one in read_insertions(config)
        ]
        self.streams = cast(list[EngineStream], nn.ModuleList(streams))
        add_to_compile_key(vllm_config, [one.described for one in streams])

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
        check_inserted_tensors(stored, [Plan(stream.config, self.shape) for stream in self.streams])
        for stream in self.streams:
            prefix = f"otter.{stream.config.name}."
            stream.load(
                {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
            )
        return {name for name, _ in self.named_parameters() if name.startswith("streams.")}


@dataclass
class StepStates:
    """What the last `compute_logits` saw, a row for each: y [rows, d], and v by insertion."""

    base_state: Tensor
    inserted: dict[str, Tensor | None]


class EngineUnembedding:
    """`signals.Unembedding` of an engine, whose output matrix may be packed or spread over ranks:
    rows of it are not to be had."""

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
        self.step: StepStates | None = None
        self.signals = {s.name: (one, s) for one in self.model.streams for s in one.config.signals}
        # Read at every step: a ParameterDict takes its time to list what it holds.
        self.heads = {n: dict(one.signals[n].items()) for n, (one, _) in self.signals.items()}
        numbers = SignalOutputs(signal for _, signal in self.signals.values())
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

    def split(self, hidden_states: Tensor) -> StepStates:
        """[y ; v ...] apart; y contiguous, as stock: a strided view may be summed otherwise."""
        d, at = self.model.shape.hidden, self.model.shape.hidden
        inserted: dict[str, Tensor | None] = {}
        for stream in self.model.streams:
            width = stream.hidden
            inserted[stream.config.name] = hidden_states[..., at : at + width] if width else None
            at += width
        return StepStates(hidden_states[..., :d].contiguous(), inserted)

    def score_texts(self, hidden_states: Tensor) -> Tensor:
        """`SignalOutputs.of_texts` of each row, [rows, numbers]."""
        step = self.split(hidden_states)
        found = [self.read_signal(name, step, slice(None)) for name in self.scoring]
        return torch.cat([scores.reshape(len(scores), -1) for scores in found], -1)

    def read_signal(self, name: str, step: StepStates, rows: Tensor | slice) -> Tensor:
        """The head of signal `name` over chosen rows of a step, in fp32: [rows, ...]."""
        owner, signal = self.signals[name]
        inserted = step.inserted[owner.config.name]
        scores = HEADS[signal.kind].forward(
            signal,
            self.heads[name],
            step.base_state[rows],
            None if inserted is None else inserted[rows],
            EngineUnembedding(super().compute_logits),  # type: ignore[misc]
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


class OtterLlamaForCausalLM(GraftedForCausalLM, LlamaForCausalLM):
    """Llama."""


class OtterMistralForCausalLM(GraftedForCausalLM, MistralForCausalLM):
    """Mistral."""


class OtterQwen2ForCausalLM(GraftedForCausalLM, Qwen2ForCausalLM):
    """Qwen2."""


class OtterQwen3ForCausalLM(GraftedForCausalLM, Qwen3ForCausalLM):
    """Qwen3."""
