"""The table that every test of families runs through: a family is one entry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from otter_cli.model.otter import OtterForCausalLM

MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
SOME_WINDOWS = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
EVERY_HEAD_ITS_KEY = {"num_key_value_heads": 4}
HALF_ROTARY = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}
GEMMA = {**SOME_WINDOWS, "hidden_size": 64, "query_pre_attn_scalar": 16}
# The base's norm after a branch rounds to float32 in any dtype; so the mirror does too.
ROUNDED = 1e-5


@dataclass(frozen=True)
class Case:
    """A tiny model of `family`, with what its configuration can switch on."""

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    full: bool = True
    # How far z may be from h[S] in float64.
    mirror: float = 1e-10
    eager_only: bool = False
    # Norms of q and k run over all heads, inserted ones apart: only all of them equal the base's.
    jointly_normed: bool = False
    rotary: bool = True
    # A part of the reason why the wide layout cannot hold it. Empty: it can.
    not_wide: str = ""
    # Whether native code runs its streams; if not, torch does.
    native: bool = False

    def __str__(self) -> str:
        return self.family

    def write(self, tiny_checkpoint: Callable[..., Path], **layout: Any) -> Path:
        return tiny_checkpoint(self.family, **self.config, **layout)

    def graft(
        self,
        tiny_checkpoint: Callable[..., Path],
        make: Callable[..., Path],
        out: Path,
        **form: Any,
    ) -> OtterForCausalLM:
        """A small insertion by `make`, in float64."""
        # Weights of few bits, so that float32 holds their products with the family's multipliers.
        base = self.write(tiny_checkpoint, dtype="bfloat16")
        form = {"hidden": 8, "ffn": 16, "heads": 2 if self.full else 0, **form}
        folder = make(base, out, signals=("reward",), **form)
        model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
        # The fused product of experts has no float64.
        model.base.set_experts_implementation("eager")
        return model


CASES = (
    Case("llama", {"attention_bias": True, "mlp_bias": True}, native=True),
    Case("mistral", {"sliding_window": 8}),
    Case("qwen2", native=True),
    Case("qwen3", native=True),
    Case("smollm3", {"no_rope_layers": [1, 0, 1]}, native=True),
    Case(
        "granite",
        {
            "embedding_multiplier": 4.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.3,
            "logits_scaling": 3.0,
        },
        native=True,
    ),
    Case("phi3", HALF_ROTARY),
    Case("gemma2", GEMMA, mirror=ROUNDED, eager_only=True, not_wide="norms a branch's output"),
    Case(
        "gemma3_text",
        {**GEMMA, "final_logit_softcapping": 5.0},
        mirror=ROUNDED,
        not_wide="norms a branch's output",
    ),
    Case("olmo2", mirror=ROUNDED, jointly_normed=True, not_wide="jointly"),
    Case("olmo3", SOME_WINDOWS, mirror=ROUNDED, jointly_normed=True, not_wide="jointly"),
    Case("cohere2", SOME_WINDOWS, not_wide="subtract a mean"),
    Case("gpt_neox", EVERY_HEAD_ITS_KEY, not_wide="subtract a mean"),
    Case("phi", HALF_ROTARY, not_wide="subtract a mean"),
    Case("gpt2", EVERY_HEAD_ITS_KEY, rotary=False, not_wide="subtract a mean"),
    Case(
        "opt",
        {**EVERY_HEAD_ITS_KEY, "ffn_dim": 48, "word_embed_proj_dim": 32},
        rotary=False,
        not_wide="subtract a mean",
    ),
    Case("mixtral", MIXTURE, not_wide="experts", native=True),
    Case(
        "qwen3_moe",
        {**MIXTURE, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
        not_wide="experts",
        native=True,
    ),
    Case("gpt_oss", {**MIXTURE, **SOME_WINDOWS}, eager_only=True, not_wide="experts"),
    Case(
        "llama4_text",
        {
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
            "moe_layers": [1],
            "attention_chunk_size": 8,
        },
        full=False,
        not_wide="scaled by position",
    ),
    Case(
        "deepseek_v3",
        {
            **EVERY_HEAD_ITS_KEY,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 24,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "head_dim": 4,
            "v_head_dim": 6,
            "qk_nope_head_dim": 4,
        },
        full=False,
        not_wide="latent",
    ),
    Case(
        "qwen3_next",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        full=False,
        not_wide="linear attention",
    ),
)
FULL = tuple(case for case in CASES if case.full)
