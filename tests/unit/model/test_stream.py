"""The inserted stream against docs/method.md, "The stream", written out plainly."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.stream import Insertion
from tests.support.grafts import graft_for, random_graft

FORMS: list[dict[str, Any]] = [
    {"heads": 2},
    {"heads": 2, "kv_heads": 1},
    {"heads": 4, "kv": "base"},
    {"heads": 2, "kv": "base", "kv_heads": 1, "kv_start": 1},
    {"heads": 2, "norm": "base"},
    {"heads": 0},
    {"heads": 2, "ffn": 0},
    {"heads": 2, "embedding": "zeros"},
    {"heads": 2, "layers": (1,)},
]


def _rms(measured: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(measured.pow(2).mean(-1, keepdim=True) + eps)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    turned = torch.cat([-heads[..., half:], heads[..., :half]], -1)
    return heads * cos[:, None] + turned * sin[:, None]


class PlainStream:
    """A Llama layer by layer from its weights alone, h and z side by side."""

    def __init__(self, model: OtterForCausalLM) -> None:
        self.shape, self.config = model.shape, model.manifest.insertions[0]
        self.base = model.base.state_dict()
        prefix = "otter.main."
        self.own = {
            name.removeprefix(prefix): tensor
            for name, tensor in model.inserted_state_dict().items()
        }
        self.cos, self.sin = _angles(model)

    def norm(self, z: Tensor, h: Tensor, name: str) -> Tensor:
        measured = z if self.config.norm == "own" else h
        return z * _rms(measured, self.shape.norm_eps) * self.own[f"{name}.weight"]

    def two(self, name: str, x: Tensor, u: Tensor | None) -> Tensor:
        out = x @ self.own[f"{name}.h.weight"].T
        return out if u is None else out + u @ self.own[f"{name}.z.weight"].T

    def run(self, tokens: Tensor) -> Tensor:
        """v, [batch, tokens, D]."""
        h = self.base["model.embed_tokens.weight"][tokens]
        zeros = torch.zeros(*tokens.shape, self.config.hidden, dtype=h.dtype)
        z = self.own["embedding.weight"][tokens] if "embedding.weight" in self.own else zeros
        for layer in range(self.shape.layers):
            h, z = self.attention(layer, h, z)
            h, z = self.ffn(layer, h, z)
        return self.norm(z, h, "norm")

    def attention(self, layer: int, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        at, here = f"model.layers.{layer}", f"layers.{layer}.attention"
        x = h * _rms(h, self.shape.norm_eps) * self.base[f"{at}.input_layernorm.weight"]
        q, k, v = (
            self.split(x @ self.base[f"{at}.self_attn.{name}_proj.weight"].T) for name in "qkv"
        )
        q, k = _rotate(q, self.cos, self.sin), _rotate(k, self.cos, self.sin)
        a = self.attend(q, k, v)
        if layer in self.config.layers:
            mine = self.heads(here, x, z, h, k, v) if self.config.heads else None
            z = z + self.two(f"{here}.out", a, mine)
        return h + a @ self.base[f"{at}.self_attn.o_proj.weight"].T, z

    def heads(self, here: str, x: Tensor, z: Tensor, h: Tensor, k: Tensor, v: Tensor) -> Tensor:
        u = self.norm(z, h, f"{here}.norm")
        query = _rotate(self.split(self.two(f"{here}.query", x, u)), self.cos, self.sin)
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return self.attend(query, k[:, read], v[:, read])
        key = _rotate(self.split(self.two(f"{here}.key", x, u)), self.cos, self.sin)
        return self.attend(query, key, self.split(self.two(f"{here}.value", x, u)))

    def ffn(self, layer: int, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        at, here = f"model.layers.{layer}", f"layers.{layer}.ffn"
        x = h * _rms(h, self.shape.norm_eps) * self.base[f"{at}.post_attention_layernorm.weight"]
        silu = torch.nn.functional.silu
        m = silu(x @ self.base[f"{at}.mlp.gate_proj.weight"].T)
        m = m * (x @ self.base[f"{at}.mlp.up_proj.weight"].T)
        if layer in self.config.layers:
            mine = None
            if self.config.ffn:
                u = self.norm(z, h, f"{here}.norm")
                mine = silu(self.two(f"{here}.gate", x, u)) * self.two(f"{here}.up", x, u)
            z = z + self.two(f"{here}.down", m, mine)
        return h + m @ self.base[f"{at}.mlp.down_proj.weight"].T, z

    def split(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.shape.head_dim)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(-2)


def _angles(model: OtterForCausalLM) -> tuple[Tensor, Tensor]:
    rotary = model.base.get_submodule("model.rotary_emb")
    positions = torch.arange(20)[None]
    return rotary(torch.zeros(1, 20, 1, dtype=torch.float64), positions)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_stream_is_the_method_s(
    tiny_llama: Path, tmp_path: Path, form: dict[str, Any], attention: str
) -> None:
    out = random_graft(tiny_llama, tmp_path / "out", **{"hidden": 8, "ffn": 16, **form})
    model = OtterForCausalLM.from_pretrained(
        out, dtype=torch.float64, attn_implementation=attention
    )
    tokens = torch.randint(
        3, model.shape.vocab, (2, 20), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        got = model(tokens).inserted_state["main"]
        expected = PlainStream(model).run(tokens)
    assert expected.std() > 0.1
    # The base's own norms and softmax round to float32, in float64 too.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [{"heads": 2}, {"heads": 4, "kv": "base"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_copy_begins_as_a_mirror_of_the_base(
    tiny_checkpoint: Any, tmp_path: Path, family: str, form: dict[str, Any]
) -> None:
    """docs/method.md, "The stream": z = h[S] after every block, to rounding."""
    out = graft_for(tiny_checkpoint(family), tmp_path / "out", hidden=8, ffn=16, **form)
    model = OtterForCausalLM.from_pretrained(out, dtype=torch.float64)
    units = torch.arange(8) * model.shape.hidden // 8
    seen: list[tuple[Tensor, Tensor]] = []

    with torch.no_grad(), model.streaming() as record:
        for layer in model.base.model.layers:
            layer.register_forward_hook(
                lambda _, __, h: seen.append((h[..., units], record.streams["main"]))
            )
        model.base(torch.arange(3, 40)[None])
    assert len(seen) == model.shape.layers
    for h, z in seen:
        torch.testing.assert_close(z, h, rtol=0, atol=1e-12)


def test_an_insertion_has_the_names_of_its_file(tiny_qwen3: Path, tmp_path: Path) -> None:
    model = OtterForCausalLM.from_pretrained(graft_for(tiny_qwen3, tmp_path / "out"))
    (insertion,) = model.insertions.values()
    assert isinstance(insertion, Insertion)
    names = {f"otter.main.{name}" for name in insertion.state_dict()}
    assert names == {name for name, _ in model.inserted_parameters()}
    assert "otter.main.layers.0.attention.query_norm.weight" in names
