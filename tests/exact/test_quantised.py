"""A base quantised as it loads (torchao's int8 weights, bitsandbytes' nf4) takes an insertion: its
logits stay those of the same quantised base, by torch.equal."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.model.load import quantisation_config
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.run import train
from tests.support.grafts import graft_for, random_graft
from tests.support.training import small_recipe

quantization = pytest.importorskip(
    "torchao.quantization", reason="torchao is absent: pip install otter-lm[quantised]"
)
TOKENS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Any) -> Path:
    return tiny_checkpoint("llama", hidden_size=64, head_dim=16, intermediate_size=128)


def _int8() -> dict[str, Any]:
    return {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig())}


@pytest.mark.parametrize("how", ["int8", "nf4"])
@pytest.mark.parametrize("kv", ["own", "base"])
def test_logits_are_those_of_the_same_quantised_base(
    base: Path, tmp_path: Path, kv: str, how: str
) -> None:
    if how == "nf4":
        pytest.importorskip("bitsandbytes", reason="absent: pip install otter-lm[quantised]")
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16, kv=kv)
    as_loaded = {"quantization_config": quantisation_config(how)}
    plain = AutoModelForCausalLM.from_pretrained(base, **as_loaded).eval()
    model = OtterForCausalLM.from_pretrained(folder, **as_loaded)
    with torch.no_grad():
        expected, got = plain(TOKENS, use_cache=True), model(TOKENS, use_cache=True)
        unquantised = AutoModelForCausalLM.from_pretrained(base)(TOKENS).logits
        assert not torch.equal(expected.logits, unquantised)
        assert torch.equal(got.logits, expected.logits)
        assert torch.equal(model.lm_head(got.base_state), expected.logits)
        caches = expected.past_key_values, got.past_key_values
        expected = plain(TOKENS[:, :1], past_key_values=caches[0])
        assert torch.equal(model(TOKENS[:, :1], past_key_values=caches[1]).logits, expected.logits)
        expected = plain(TOKENS).logits
        for _, parameter in model.inserted_parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(model(TOKENS).logits, expected)


def test_gradients_reach_the_insertion_and_no_quantised_weight(base: Path, tmp_path: Path) -> None:
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16)
    model = OtterForCausalLM.from_pretrained(folder, **_int8())
    sum(signal.square().mean() for signal in model(TOKENS).signals.values()).backward()
    for name, parameter in model.inserted_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not any(p.requires_grad for p in model.base.parameters())


def test_copies_are_of_the_file_s_weights(base: Path, tmp_path: Path) -> None:
    """The stream begins as a mirror of the base before it was quantised: near it, not equal."""
    folder = graft_for(base, tmp_path / "g", hidden=8, heads=2, ffn=16)
    quantised, exact = (OtterForCausalLM.from_pretrained(folder, **how) for how in (_int8(), {}))
    with torch.no_grad():
        states = [model(TOKENS).inserted_state["main"] for model in (quantised, exact)]
    assert not torch.equal(*states)
    assert torch.nn.functional.cosine_similarity(*states, dim=-1).min() > 0.95


@pytest.mark.parametrize("less", ["int8", "nf4"])
def test_a_run_beside_it_leaves_the_base_as_it_was(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], less: str
) -> None:
    if less == "nf4":
        pytest.importorskip("bitsandbytes", reason="absent: pip install otter-lm[quantised]")
    folder = graft_for(base, tmp_path / "g", hidden=8, heads=2, ffn=16, signals=("reward",))
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}
    losses = {}
    for how in (less, None):
        recipe = small_recipe(tmp_path, steps=3, quantize=how)
        train(folder, recipe, restart=True)
        assert (f"the base is {less} while this trains" in capfd.readouterr().err) == bool(how)
        records = read_jsonlines(folder / "training" / "metrics.jsonl")
        losses[how] = [record["loss"]["reward"] for record in records if "loss" in record]
        assert all((folder / name).read_bytes() == bytes_ for name, bytes_ in before.items())
    assert losses[less] != losses[None], "the weights were not quantised"
    quantised = small_recipe(tmp_path, quantize=less)
    with pytest.raises(OtterError, match="probe is neither"):
        train(folder, quantised, baseline="probe", to=tmp_path / "probe")


@pytest.mark.parametrize(("how", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_without_its_library_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, how: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OtterError, match=f"{how} needs the package {package}") as caught:
        quantisation_config(how)
    assert "otter-lm[quantised]" in caught.value.hint
