"""The grafted model: strict loading, gradients in the insertion alone, caches, states."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import StaticCache

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE, InsertedRecord
from otter_cli.model.load import load_base
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import graft_for, random_graft


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=2, ffn=16)


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(0))


def _rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As a tool would that keeps the digest in otter.json right: only the plan can object."""
    save_file(tensors, folder / TENSORS_FILE)
    record = InsertedRecord(sha256=sha256_file(folder / TENSORS_FILE))
    Manifest.read(folder).model_copy(update={"inserted": record}).write(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / TENSORS_FILE)
    del tensors["otter.main.norm.weight"]
    _rewrite(folder, tensors)
    with pytest.raises(OtterError, match=r"otter\.main\.norm\.weight is missing"):
        OtterForCausalLM.from_pretrained(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    _rewrite(folder, {**load_file(folder / TENSORS_FILE), "otter.main.extra": torch.zeros(1)})
    with pytest.raises(OtterError, match=r"otter\.main\.extra is unexpected"):
        OtterForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("change", [lambda t: t[:-1].clone(), lambda t: t.to(torch.bfloat16)])
def test_a_tensor_of_another_shape_or_dtype_is_named(folder: Path, change: Any) -> None:
    tensors = load_file(folder / TENSORS_FILE)
    tensors["otter.main.norm.weight"] = change(tensors["otter.main.norm.weight"])
    _rewrite(folder, tensors)
    with pytest.raises(OtterError, match=r"otter\.main\.norm\.weight is"):
        OtterForCausalLM.from_pretrained(folder)


def test_a_base_that_transformers_would_fill_at_random_is_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OtterError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_base(base)


def test_an_adapter_loads_on_its_base_and_no_other(
    folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    adapter.mkdir()
    for name in (MANIFEST, TENSORS_FILE):
        shutil.copy(folder / name, adapter / name)
    tokens = _tokens(1, 9)
    with torch.no_grad():
        whole = OtterForCausalLM.from_pretrained(folder)(tokens)
        apart = OtterForCausalLM.from_pretrained(adapter, base=tiny_llama)(tokens)
    assert torch.equal(whole.logits, apart.logits)
    assert torch.equal(whole.signals["reward"], apart.signals["reward"])

    shutil.copytree(tiny_llama, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    with pytest.raises(OtterError, match=r"model\.safetensors is not the base"):
        OtterForCausalLM.from_pretrained(adapter, base=other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_file_s(tiny_checkpoint: Any, tmp_path: Path, dtype: str) -> None:
    folder = graft_for(tiny_checkpoint("llama", dtype=dtype), tmp_path / "out")
    model = OtterForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in model.base.parameters()} == {getattr(torch, dtype)}
    wide = OtterForCausalLM.from_pretrained(folder, insertion_dtype=torch.float32)
    assert {p.dtype for _, p in wide.inserted_parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(wide(_tokens(2, 9)).logits, wide.base(_tokens(2, 9)).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kv", ["own", "base"])
def test_gradients_reach_every_inserted_tensor_and_nothing_else(
    tiny_qwen2: Path, tmp_path: Path, kv: str, attention: str
) -> None:
    folder = random_graft(tiny_qwen2, tmp_path / "out", hidden=8, heads=2, ffn=16, kv=kv)
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation=attention)
    out = model(_tokens(2, 12))
    assert not out.logits.requires_grad and not out.base_state.requires_grad
    sum(signal.square().mean() for signal in out.signals.values()).backward()
    for name, parameter in model.inserted_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in model.base.parameters())


@pytest.mark.parametrize("form", [{"heads": 2}, {"heads": 4, "kv": "base"}, {"hidden": 0}], ids=str)
def test_signals_from_a_cache_are_those_of_a_full_forward(
    tiny_llama: Path, tmp_path: Path, form: dict[str, Any]
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "out", **{"hidden": 8, "ffn": 16, **form})
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens, cache = _tokens(2, 15), model.new_cache()
    with torch.no_grad():
        full = model(tokens)
        steps = [model(tokens[:, :6], past_key_values=cache, use_cache=True)]
        for at in range(6, 15):
            steps.append(model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True))
    for name, expected in full.signals.items():
        got = torch.cat([step.signals[name] for step in steps], 1)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_own_keys_and_values_cannot_join_late(folder: Path) -> None:
    model, cache = OtterForCausalLM.from_pretrained(folder), None
    with torch.no_grad():
        cache = model.base(_tokens(1, 5), use_cache=True).past_key_values
        with pytest.raises(OtterError, match="KV cache") as caught:
            model(_tokens(1, 1), past_key_values=cache, use_cache=True)
    assert "--kv base" in caught.value.hint


def test_the_base_s_keys_and_values_let_a_signal_join_late(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "out", hidden=8, heads=4, ffn=16, kv="base")
    model, tokens = OtterForCausalLM.from_pretrained(folder), _tokens(1, 9)
    early, late = model.new_cache(), model.new_cache()
    with torch.no_grad():
        model(tokens[:, :8], past_key_values=early, use_cache=True)
        model.base(tokens[:, :8], past_key_values=late, use_cache=True)
        with_prefix = model(tokens[:, 8:], past_key_values=early, use_cache=True)
        without = model(tokens[:, 8:], past_key_values=late, use_cache=True)
    assert torch.equal(with_prefix.signals["reward"], without.signals["reward"])


def test_embeddings_in_place_of_tokens_are_refused(folder: Path) -> None:
    model = OtterForCausalLM.from_pretrained(folder)
    embeddings = torch.zeros(1, 4, model.shape.hidden)
    with model.streaming(), pytest.raises(OtterError, match="inputs_embeds"):
        model.base(inputs_embeds=embeddings)
    # Without the stream it is a plain base call.
    model.base(inputs_embeds=embeddings)


def test_chosen_signals_and_states(folder: Path) -> None:
    model = OtterForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        out = model(_tokens(2, 7), signals=("reward",), logits=False)
        assert out.logits is None and set(out.signals) == {"reward"}
        last = {name: v[:, -1:] for name, v in out.inserted_state.items()}
        again = model.read_signal("reward", out.base_state[:, -1:], last)
        torch.testing.assert_close(again, out.signals["reward"][:, -1:])
        full = model(_tokens(2, 7), signals=()).logits
        torch.testing.assert_close(model.lm_head(out.base_state), full)
    with pytest.raises(OtterError, match="no signal 'rewrd'") as caught:
        model(_tokens(1, 3), signals=("rewrd",))
    assert "'reward'" in caught.value.hint


def test_training_mode_leaves_the_base_in_eval(folder: Path) -> None:
    model = OtterForCausalLM.from_pretrained(folder).train()
    assert model.training and not any(module.training for module in model.base.modules())


@pytest.mark.parametrize("kv", ["own", "base"])
@pytest.mark.parametrize("static", [False, True])
def test_a_stream_that_waits_for_the_base_is_the_stream_beside_it(
    tiny_llama: Path, tmp_path: Path, kv: str, static: bool
) -> None:
    """Few rows wait, many do not: what is cached and what is given differs in rounding only."""
    model = OtterForCausalLM.from_pretrained(
        random_graft(tiny_llama, tmp_path / kv, hidden=8, heads=2, ffn=16, kv=kv)
    )
    states = {}
    for waits in (True, False):
        model.capture.can_run_late = waits
        cache = StaticCache(model.config, max_cache_len=12) if static else model.new_cache()
        with torch.no_grad(), model.streaming() as record:
            steps = []
            for tokens in (_tokens(1, 6), _tokens(1, 1), _tokens(1, 3)):
                model.base(tokens, past_key_values=cache, use_cache=True)
                assert record.run_after_base is waits
                steps.append(record.inserted_state["main"])
        states[waits] = steps
    torch.testing.assert_close(states[True], states[False], rtol=1e-5, atol=1e-5)


def test_streams_are_up_to_date_whenever_they_are_read(folder: Path) -> None:
    model = OtterForCausalLM.from_pretrained(folder)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    with model.streaming() as record, torch.no_grad():
        model.capture.layers[0].register_forward_hook(
            lambda *_: seen[record.run_after_base].append(record.streams["main"])
        )
        for model.capture.can_run_late in (True, False):
            model.base(_tokens(1, 5))
    torch.testing.assert_close(*seen[True], *seen[False], rtol=1e-5, atol=1e-5)


def test_many_rows_do_not_wait(folder: Path) -> None:
    model = OtterForCausalLM.from_pretrained(folder)
    with model.streaming() as record, torch.no_grad():
        model.base(_tokens(8, 40))
    assert not record.run_after_base
