"""Probes, a branch, LoRA and small models: what is trained, what is written, what stays frozen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import last_tokens, real_tokens
from otter_cli.data.datasets import pad_batch
from otter_cli.training.baselines import make_trainable
from otter_cli.training.baselines.lora import LORA_PROBE_FILE, LoraProbeTrainable
from otter_cli.training.baselines.readouts import PROBE_FILE, ReadoutTrainable, load_probe
from otter_cli.training.run import train
from tests.support.training import FUTURE, ctrl_c_in_step, small_graft, small_recipe
from tests.support.training_kills import same_tensors

BATCH = pad_batch([[1, 5, 6, 7, 2], [1, 5, 2], [1, 8, 8, 2], [1, 9, 5, 6, 2]], 0)
READOUTS = ["probe", "mha-probe", "reward-channel"]
STRONG = [*READOUTS, "branch", "lora", "lora-probe", "small"]
FILES = {**dict.fromkeys(READOUTS, PROBE_FILE), "lora-probe": LORA_PROBE_FILE}


@pytest.mark.parametrize("baseline", STRONG)
def test_it_learns_resumes_to_the_bit_and_leaves_the_graft_alone(
    folder: Path, tmp_path: Path, baseline: Any
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    recipe = small_recipe(tmp_path, steps=40, learning_rate=0.03)
    result = train(folder, recipe, baseline=baseline, to=tmp_path / "one")
    assert result.signals["reward"]["accuracy"].mean > 0.8
    with ctrl_c_in_step(25):
        train(folder, recipe, baseline=baseline, to=tmp_path / "two")
    train(folder, recipe, baseline=baseline, to=tmp_path / "two", resume=True)
    file = FILES.get(baseline, "model.safetensors")
    same_tensors(tmp_path / "one" / file, tmp_path / "two" / file)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("baseline", ["branch", "lora", "small"])
def test_the_folder_is_a_stock_classifier_that_scores_alike(
    folder: Path, tmp_path: Path, baseline: Any
) -> None:
    from transformers import AutoModelForSequenceClassification

    recipe, to = small_recipe(tmp_path, steps=5), tmp_path / "to"
    train(folder, recipe, baseline=baseline, to=to)
    stock: Any = AutoModelForSequenceClassification.from_pretrained(to)
    trainable = make_trainable(folder, recipe, "separate", to, "cpu")
    with torch.no_grad():
        theirs = stock(BATCH.input_ids, attention_mask=BATCH.attention_mask).logits.squeeze(-1)
        ours = trainable.reader("reward")(BATCH, last_tokens(BATCH))
    assert theirs.abs().max() > 1e-4
    assert torch.allclose(theirs, ours, atol=1e-6)


def test_a_branch_moves_the_last_layer_norm_and_head_alone(
    folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    to = tmp_path / "branch"
    train(folder, small_recipe(tmp_path, steps=25), baseline="branch", to=to)
    before, after = load_file(tiny_llama / "model.safetensors"), load_file(to / "model.safetensors")
    moved = {n for n, t in after.items() if n not in before or not torch.equal(t, before[n])}
    last = max(int(n.split(".")[2]) for n in before if n.startswith("model.layers."))
    expected = {
        n for n in after if n.startswith((f"model.layers.{last}.", "model.norm.", "score."))
    }
    assert moved == expected


def test_lora_updates_are_of_their_rank(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    to = tmp_path / "lora"
    recipe = small_recipe(tmp_path, steps=25, baselines={"lora": {"rank": 2}})
    train(folder, recipe, baseline="lora", to=to)
    before, after = load_file(tiny_llama / "model.safetensors"), load_file(to / "model.safetensors")
    for name, tensor in before.items():
        if name not in after:
            continue
        change = after[name] - tensor
        if "_proj" in name:
            assert torch.linalg.matrix_rank(change, atol=1e-6) == 2
        else:
            assert torch.equal(change, torch.zeros_like(change))


def test_a_small_model_is_the_first_layers(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "small"
    recipe = small_recipe(tmp_path, steps=1, baselines={"small": {"layers": 1}})
    train(folder, recipe, baseline="small", to=to)
    layers = {n.split(".")[2] for n in load_file(to / "model.safetensors") if ".layers." in n}
    assert layers == {"0"}


def _taps(probe: ReadoutTrainable, ids: Tensor, reads: str) -> list[Tensor]:
    """What a stock forward hands over, [tokens, width] each, in order."""
    taps: list[Tensor] = []
    hooks = []
    for layer in probe.model.model.layers:
        if reads == "states":
            hooks.append(layer.register_forward_hook(lambda m, i, out: taps.append(out[0])))
            continue
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            hooks.append(module.register_forward_pre_hook(lambda m, inputs: taps.append(inputs[0])))
    probe.model(ids)
    for hook in hooks:
        hook.remove()
    return [tap.double().view(ids.shape[1], -1) for tap in taps]


def _reference(probe: ReadoutTrainable, reads: str) -> Tensor:
    """Scores at every position, text by text."""
    weights = {name: p.double() for name, p in probe.model.readout.items()}
    found = torch.zeros(BATCH.input_ids.shape, dtype=torch.double)
    for row, last in enumerate(BATCH.last.tolist()):
        taps = _taps(probe, BATCH.input_ids[row : row + 1, : last + 1], reads)
        features = torch.cat([t / (t.square().mean(-1, True) + 1e-6).sqrt() for t in taps], -1)
        r = features @ weights["weight"][0] + weights["bias"]
        g = torch.sigmoid(features @ weights["gate"][0] + weights["gate_bias"])
        for t in range(last + 1):
            found[row, t] = (g[: t + 1] * r[: t + 1]).sum() / g[: t + 1].sum()
    return found


@pytest.mark.parametrize("reads", ["states", "branches"])
def test_a_probe_is_the_gated_mean_of_its_prefix(folder: Path, tmp_path: Path, reads: str) -> None:
    recipe = small_recipe(tmp_path, baselines={"probe": {"reads": reads}})
    probe = make_trainable(folder, recipe, "probe", tmp_path / "probe", "cpu")
    assert isinstance(probe, ReadoutTrainable)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.model.readout.values():
            parameter.normal_(0, 0.1, generator=generator)
        at = real_tokens(BATCH)
        scores = probe.reader("reward")(BATCH, at)
        assert torch.allclose(scores, _reference(probe, reads)[at].float(), atol=1e-5)
    assert "bias" not in probe.parameters, "it cancels in a pair"
    assert all(p.grad is None for p in probe.model.parameters())


def _normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _channel_reference(w: dict[str, Tensor], layers: list[Tensor], norm: str) -> Tensor:
    """The last z of one text, token by token, [tokens, scores]."""
    scores = []
    for t in range(len(layers[0])):
        z = torch.zeros(w["weight"].shape[1], dtype=torch.double)
        for layer, h in enumerate(layers):
            parts = [_normed(h[t]), _normed(z)] if norm == "separate" else [h[t], z]
            joined = torch.cat(parts)
            joined = joined if norm == "separate" else _normed(joined)
            inner = w["layers"][layer] @ ((1 + w["norms"][layer]) * joined)
            z = inner * torch.sigmoid(inner) + z
        scores.append(w["weight"] @ z + w["bias"])
    return torch.stack(scores)


def _attention_reference(w: dict[str, Tensor], layers: list[Tensor]) -> Tensor:
    """Layers are weighed first, then tokens, head by head, [tokens, scores]."""
    heads, dim = w["query"].shape
    states = torch.stack([_normed(h) for h in layers])  # [layers, tokens, d]
    keys = (states @ w["key"].T).unflatten(-1, (heads, dim))
    values = (states @ w["value"].T).unflatten(-1, (heads, dim))
    u = torch.zeros(states.shape[1], heads, dim, dtype=torch.double)
    for head in range(heads):
        logits = keys[:, :, head] @ w["query"][head] / dim**0.5 + w["layer_bias"][head][:, None]
        u[:, head] = (logits.softmax(0)[..., None] * values[:, :, head]).sum(0)
    flat = u.flatten(1)
    query, key, value = (
        part.unflatten(-1, (heads, dim)) for part in (flat @ w["token_inputs"].T).chunk(3, -1)
    )
    scores = []
    for t in range(len(flat)):
        mixed = [
            (key[: t + 1, h] @ query[t, h] / dim**0.5).softmax(0) @ value[: t + 1, h]
            for h in range(heads)
        ]
        scores.append(w["weight"] @ torch.cat([flat[t], *mixed]) + w["bias"])
    return torch.stack(scores)


@pytest.mark.parametrize("form", ["mha-probe", "joint", "separate"])
def test_readouts_follow_their_formulas(folder: Path, tmp_path: Path, form: str) -> None:
    baseline: Any = "mha-probe" if form == "mha-probe" else "reward-channel"
    settings = {"mha_probe": {"width": 32}}
    if form != "mha-probe":
        settings = {"reward_channel": {"width": 5, "norm": form}}
    recipe = small_recipe(tmp_path, baselines=settings)
    trainable = make_trainable(folder, recipe, baseline, tmp_path / "to", "cpu")
    assert isinstance(trainable, ReadoutTrainable)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable.model.readout.values():
            parameter.normal_(0, 0.2, generator=generator)
        scores = trainable.reader("reward")(BATCH, real_tokens(BATCH))
        weights = {name: p.double() for name, p in trainable.model.readout.items()}
        expected = []
        for row, last in enumerate(BATCH.last.tolist()):
            layers = _taps(trainable, BATCH.input_ids[row : row + 1, : last + 1], "states")
            if form == "mha-probe":
                expected.append(_attention_reference(weights, layers))
            else:
                expected.append(_channel_reference(weights, layers, form))
    assert torch.allclose(scores.double(), torch.cat(expected)[:, 0], atol=1e-5)


def test_a_width_that_is_no_whole_number_of_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="multiple of 16"):
        small_recipe(tmp_path, baselines={"mha_probe": {"width": 40}})


@pytest.mark.parametrize("baseline", READOUTS)
def test_a_readout_is_loaded_as_it_was_trained(folder: Path, tmp_path: Path, baseline: Any) -> None:
    recipe, to = small_recipe(tmp_path, steps=3), tmp_path / "to"
    train(folder, recipe, baseline=baseline, to=to)
    trainable = make_trainable(folder, recipe, baseline, to, "cpu")
    assert isinstance(trainable, ReadoutTrainable)
    readout, signal = load_probe(to, trainable.model, trainable.readout.shape)
    assert type(readout) is type(trainable.readout) and signal.name == "reward"
    file = load_file(to / PROBE_FILE)
    assert all(torch.equal(tensor, file[name]) for name, tensor in readout.weights.items())
    with torch.no_grad():
        assert readout(BATCH.input_ids, BATCH.attention_mask).shape == (*BATCH.input_ids.shape, 1)


@pytest.mark.parametrize("baseline", READOUTS)
def test_a_readout_of_another_base_is_refused(folder: Path, tmp_path: Path, baseline: Any) -> None:
    recipe, to = small_recipe(tmp_path, steps=1), tmp_path / "to"
    train(folder, recipe, baseline=baseline, to=to)
    trainable: Any = make_trainable(folder, recipe, baseline, to, "cpu")
    deeper = replace(trainable.readout.shape, layers=trainable.readout.shape.layers + 1)
    with pytest.raises(OtterError, match="on this base it would be"):
        load_probe(to, trainable.model, deeper)


def test_a_channel_has_the_parameters_of_the_graft(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    channel = make_trainable(folder, recipe, "reward-channel", tmp_path / "to", "cpu")
    graft = make_trainable(folder, recipe, None, None, "cpu")
    count = sum(p.numel() for p in channel.model.readout.values())
    inserted = sum(p.numel() for _, p in graft.model.inserted_parameters())
    assert count == pytest.approx(inserted, rel=0.1)


@pytest.mark.parametrize("baseline", STRONG)
def test_future_tokens_are_no_score_of_a_text(
    tiny_llama: Path, tmp_path: Path, baseline: Any
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "future:2")
    recipe = small_recipe(tmp_path, {"future": FUTURE})
    with pytest.raises(OtterError, match="cannot give signal 'future' of kind future"):
        train(folder, recipe, baseline=baseline, to=tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_family_whose_branches_hand_nothing_over_is_told(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    folder = small_graft(tiny_checkpoint("mixtral"), tmp_path / "graft")
    recipe = small_recipe(tmp_path, baselines={"probe": {"reads": "branches"}})
    with pytest.raises(OtterError, match="MixtralForCausalLM hands over no inputs"):
        train(folder, recipe, baseline="probe", to=tmp_path / "to")


def test_the_drift_of_a_lora_probe_is_the_kl_of_what_it_says(
    folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    recipe = small_recipe(tmp_path)
    probe = make_trainable(folder, recipe, "lora-probe", tmp_path / "to", "cpu")
    assert isinstance(probe, LoraProbeTrainable)
    with torch.no_grad():
        assert probe.kl_to_base(BATCH).abs().max() < 1e-6, "an update begins as none"
        for name, parameter in probe.parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        probe.reader("reward")
        drift = probe.kl_to_base(BATCH)
        base = AutoModelForCausalLM.from_pretrained(tiny_llama)
        for row, last in enumerate(BATCH.last.tolist()):
            ids = BATCH.input_ids[row : row + 1, : last + 1]
            p = base(ids).logits.double().softmax(-1)
            q = probe.model(ids).logits.double().softmax(-1)
            expected = (p * (p / q).log()).sum(-1).mean()
            assert drift[row].item() == pytest.approx(expected.item(), rel=1e-3)
    assert drift.min() > 1e-4


def test_a_kl_penalty_keeps_the_text_nearer_to_the_base(folder: Path, tmp_path: Path) -> None:
    drifts = []
    for kl in (0.0, 10.0):
        settings = {"baselines": {"lora_probe": {"kl": kl}}}
        recipe = small_recipe(tmp_path, steps=25, learning_rate=0.03, **settings)
        result = train(folder, recipe, baseline="lora-probe", to=tmp_path / f"{kl}")
        drifts.append(result.signals["reward"]["kl_to_base"])
    free, kept = drifts
    assert 0 < kept.mean < free.mean / 2 and kept.n == free.n
