"""Probes, a branch, LoRA and small models: what is trained, what is written, what stays frozen."""

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
from otter_cli.training.baselines.readouts import PROBE_FILE, ProbeTrainable
from otter_cli.training.run import train
from tests.support.training import FUTURE, ctrl_c_in_step, small_graft, small_recipe
from tests.support.training_kills import same_tensors

BATCH = pad_batch([[1, 5, 6, 7, 2], [1, 5, 2], [1, 8, 8, 2], [1, 9, 5, 6, 2]], 0)
STRONG = ["probe", "branch", "lora", "lora-probe", "small"]
FILES = {"probe": PROBE_FILE, "lora-probe": LORA_PROBE_FILE}


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


def _taps(probe: ProbeTrainable, ids: Tensor, reads: str) -> list[Tensor]:
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


def _reference(probe: ProbeTrainable, reads: str) -> Tensor:
    """Scores at every position, text by text."""
    weights = {name: p.double() for name, p in probe.model.probe.items()}
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
    assert isinstance(probe, ProbeTrainable)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.model.probe.values():
            parameter.normal_(0, 0.1, generator=generator)
        at = real_tokens(BATCH)
        scores = probe.reader("reward")(BATCH, at)
        assert torch.allclose(scores, _reference(probe, reads)[at].float(), atol=1e-5)
    assert "bias" not in probe.parameters, "it cancels in a pair"
    assert all(p.grad is None for p in probe.model.parameters())


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
