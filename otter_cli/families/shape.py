"""The sizes and resolved traits of a base, read from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.families.family import SQRT_HIDDEN_SIZE, Family, FlagTrait, ScaleTrait
from otter_cli.families.registry import find_family
from otter_cli.families.rope import LengthRule, length_rule, scaled_max_positions

# No model that fits a machine is larger than this in any one dimension.
_MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class BaseShape:
    """The sizes and resolved traits of a base; METHOD notation in brackets."""

    family: Family
    layers: int  # [L]
    hidden: int  # [d]
    heads: int  # [H]
    kv_heads: int  # [K]
    head_dim: int  # [c]
    ffn: int  # [F], an expert's where there are experts
    vocab: int  # [V]
    max_positions: int
    norm_eps: float
    activation: str
    tied: bool
    attention_bias: bool
    out_bias: bool
    ffn_bias: bool
    parallel: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_divisor: float
    logit_cap: float | None
    length_rule: LengthRule | None

    @property
    def group(self) -> int:
        """Query heads that share one key/value head [H / K]."""
        return self.heads // self.kv_heads

    @property
    def positions(self) -> int:
        """Rows of the table of learned positions; 0 where there is none."""
        learned = self.family.positions
        return self.max_positions + learned.offset if learned else 0


def base_shape(config: dict[str, Any]) -> BaseShape:
    """Reads the sizes of a base from config.json. Raises OtterError for absent or absurd numbers,
    and for members of a family that are built otherwise."""
    family = find_family(config)
    read = _ConfigReader(family, config)
    read.refuse()
    heads, hidden = read.size("num_attention_heads"), read.size("hidden_size")
    kv_heads, head_dim = heads, max(hidden // heads, 1)
    if not family.attention.equal_heads:
        kv_heads = read.size("num_key_value_heads", default=kv_heads)
        head_dim = read.size("head_dim", default=head_dim)
    if heads % kv_heads:
        raise OtterError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}",
            hint="the checkpoint's configuration is damaged",
        )
    widening = family.ffn.widening
    cap = read.value(family.logit_cap) if family.logit_cap else None
    return BaseShape(
        family=family,
        layers=read.size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=read.size("intermediate_size", default=widening and widening * hidden),
        vocab=read.size("vocab_size"),
        max_positions=scaled_max_positions(
            config, read.size("max_position_embeddings", default=2048)
        ),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        activation=str(read.value("hidden_act", "silu")),
        tied=read.flag("tie_word_embeddings"),
        attention_bias=read.flag(family.attention.bias),
        out_bias=read.flag(family.attention.out_bias),
        ffn_bias=read.flag(family.ffn.bias),
        parallel=read.flag(family.parallel),
        embedding_scale=sqrt(hidden)
        if family.embedding_scale == SQRT_HIDDEN_SIZE
        else read.scale(family.embedding_scale),
        residual_scale=read.scale(family.residual_scale),
        logit_scale=read.scale(family.logit_scale),
        logit_divisor=read.scale(family.logit_divisor),
        logit_cap=None if cap is None else float(cap),
        length_rule=length_rule(config),
    )


class _ConfigReader:
    """config.json under Llama's keys, with the family's defaults for what it leaves out."""

    def __init__(self, family: Family, config: dict[str, Any]) -> None:
        self.family, self.config = family, config

    def value(self, key: str, default: Any = None) -> Any:
        name = self.family.keys.get(key, key)
        found = self.config.get(name)
        return self.family.defaults.get(name, default) if found is None else found

    def flag(self, trait: FlagTrait) -> bool:
        return bool(self.value(trait, False)) if isinstance(trait, str) else trait

    def scale(self, trait: ScaleTrait) -> float:
        return self.number(trait, 1.0) if isinstance(trait, str) else trait

    def number(self, key: str, default: float) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _damaged_config_error(self.family.keys.get(key, key), value, "a number")
        return float(value)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
            name = self.family.keys.get(key, key)
            raise _damaged_config_error(name, value, f"a number from 1 to {_MAX_SIZE}")
        return value

    def refuse(self) -> None:
        for key, refused, why in self.family.refused:
            if self.value(key) == refused:
                raise OtterError(
                    f"this {self.family.model_type} is not supported: {why} ({key} is {refused})",
                    hint="others of the family are; `otter inspect --families` lists what is",
                )


def _damaged_config_error(name: str, value: Any, wanted: str) -> OtterError:
    return OtterError(
        f"config.json: {name} is {value!r}, not {wanted}",
        hint="the checkpoint's configuration is damaged, or not a decoder's",
    )
