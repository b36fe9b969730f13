"""The base's logits do not move by a bit, whatever the insertion holds. torch.equal only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, StaticCache

from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
FORMS = ({"heads": 2}, {"heads": 4, "kv": "base"}, {"heads": 2, "norm": "base"})
POISON = (float("nan"), float("inf"), -float("inf"), 1e30, 1e-42)


def _pair(base: Path, out: Path, **options: Any) -> tuple[Any, OtterForCausalLM]:
    """The base as transformers loads it by itself, and the graft: two models, nothing shared."""
    loading = {k: options.pop(k) for k in ("dtype", "attn_implementation") if k in options}
    random_graft(base, out, **{"hidden": 8, "ffn": 16, **options})
    plain = AutoModelForCausalLM.from_pretrained(base, **loading).eval()
    return plain, OtterForCausalLM.from_pretrained(out, **loading)


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_padding_and_cache(
    tiny_checkpoint: Any,
    tmp_path: Path,
    family: str,
    dtype: torch.dtype,
    attention: str,
    form: dict[str, Any],
) -> None:
    plain, model = _pair(
        tiny_checkpoint(family), tmp_path / "g", dtype=dtype, attn_implementation=attention, **form
    )
    tokens, mask = _tokens(4, 20), torch.ones(4, 20, dtype=torch.long)
    for row in range(4):
        mask[row, : 2 * row] = 0
    with torch.no_grad():
        expected = plain(tokens, attention_mask=mask, use_cache=True)
        got = model(tokens, attention_mask=mask, use_cache=True)
        assert torch.equal(got.logits, expected.logits)
        theirs, ours = expected.past_key_values, got.past_key_values
        for _ in range(3):
            mask = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], 1)
            expected = plain(tokens[:, :1], attention_mask=mask, past_key_values=theirs)
            got = model(tokens[:, :1], attention_mask=mask, past_key_values=ours)
            assert torch.equal(got.logits, expected.logits)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": False, "prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_generate_says_the_same(
    tiny_llama: Path, tmp_path: Path, form: dict[str, Any], arguments: dict[str, Any]
) -> None:
    plain, model = _pair(tiny_llama, tmp_path / "g", **form)
    tokens = _tokens(1, 8)
    torch.manual_seed(5)
    expected = plain.generate(tokens, max_new_tokens=20, **arguments)
    torch.manual_seed(5)
    with model.streaming() as record:
        got = model.base.generate(tokens, max_new_tokens=20, **arguments)
    assert torch.equal(got, expected)
    assert record.inserted_state["main"].isfinite().all()


@pytest.mark.parametrize("kv", ["own", "base"])
def test_static_cache(tiny_llama: Path, tmp_path: Path, kv: str) -> None:
    plain, model = _pair(tiny_llama, tmp_path / "g", heads=2, kv=kv)
    caches = [StaticCache(config=plain.config, max_cache_len=32) for _ in range(2)]
    with torch.no_grad():
        for part in (_tokens(2, 9), _tokens(2, 1), _tokens(2, 4)):
            expected = plain(part, past_key_values=caches[0], use_cache=True).logits
            assert torch.equal(
                model(part, past_key_values=caches[1], use_cache=True).logits, expected
            )


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("kv", ["own", "base"])
def test_poison_does_not_reach_the_logits(
    tiny_llama: Path, tmp_path: Path, kv: str, value: float
) -> None:
    plain, model = _pair(tiny_llama, tmp_path / "g", heads=2, kv=kv)
    tokens = _tokens(2, 12)
    with torch.no_grad():
        expected = plain(tokens).logits
        parameters = [parameter for _, parameter in model.inserted_parameters()]
        for parameter in parameters:
            kept = parameter.clone()
            parameter.fill_(value)
            assert torch.equal(model(tokens).logits, expected)
            parameter.copy_(kept)
        for parameter in parameters:
            parameter.fill_(value)
        assert torch.equal(model(tokens).logits, expected)


def test_the_vanilla_class_still_loads_the_base(tiny_llama: Path, tmp_path: Path) -> None:
    plain, _ = _pair(tiny_llama, tmp_path / "g", heads=2)
    folder, info = AutoModelForCausalLM.from_pretrained(tmp_path / "g", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(folder(_tokens(1, 9)).logits, plain(_tokens(1, 9)).logits)


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361", "chat-7m"])
def test_real_checkpoints(shared: Path, tmp_path: Path, name: str) -> None:
    plain, model = _pair(shared / "models" / name, tmp_path / "g", heads=2)
    tokens = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, plain(tokens).logits)
