"""The memory of a step: counted and not guessed, and kept within a budget without a change."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from otter_cli.accel.packed import FusedLinear
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.shape import base_shape
from otter_cli.model.load import load_tokenizer
from otter_cli.model.stream import DualInputLinear
from otter_cli.training import memory
from otter_cli.training.baselines import make_trainable
from otter_cli.training.loop import TrainingRun
from otter_cli.training.memory import PeakMemory, activation_bytes, plan_memory
from otter_cli.training.signal_data import load_signal_data
from otter_cli.training.state import StateFolder
from otter_cli.training.trainable import GraftTrainable, Trainable
from tests.support.training import REWARD, TOXICITY, small_graft, small_recipe

EVERY = {**REWARD, "positions": "every"}


def _run(
    folder: Path, data: Path, trainable: Trainable | None = None, signal: Any = EVERY, **more: Any
) -> TrainingRun:
    name = "toxicity" if signal["objective"] == "classification" else "reward"
    recipe = small_recipe(data, {name: signal}, **more)
    trainable = trainable or GraftTrainable(folder, recipe)
    material = load_signal_data(name, recipe, trainable.signals[name], load_tokenizer(folder))
    return TrainingRun(trainable, recipe, {name: material}, StateFolder(folder), {})


def _in_bfloat16(run: TrainingRun) -> TrainingRun:
    run.trainable.model.base.bfloat16()
    return run


def test_the_count_is_what_a_graph_of_known_tensors_keeps(folder: Path, tmp_path: Path) -> None:
    run = _run(folder, tmp_path)
    weight = nn.Parameter(torch.ones(16, 4))
    run.trainable.model.known = weight

    def loss(read: Any, batch: Any) -> torch.Tensor:
        assert len(batch.last) == 2 * 3
        # The product keeps its input, the square what it squares; the weight is no activation.
        return (torch.ones(6, 16) @ weight).square().sum()

    object.__setattr__(run.recipe.signals["reward"], "loss", loss)
    assert activation_bytes(run, "reward", 3) == 4 * 6 * (16 + 4)


def test_counting_keeps_nothing(folder: Path, tmp_path: Path) -> None:
    run, alive = _run(folder, tmp_path), []

    def loss(read: Any, batch: Any) -> torch.Tensor:
        out = next(iter(run.trainable.parameters.values())).exp()  # its graph keeps its result
        alive.append(weakref.ref(out))
        return out.sum()

    object.__setattr__(run.recipe.signals["reward"], "loss", loss)
    activation_bytes(run, "reward", 1)
    assert alive[0]() is None


def test_counting_moves_nothing(folder: Path, tmp_path: Path) -> None:
    run = _run(folder, tmp_path)
    before = {name: p.detach().clone() for name, p in run.trainable.parameters.items()}
    plan_memory(run)
    assert all(torch.equal(before[name], p) for name, p in run.trainable.parameters.items())
    assert all(p.grad is None for p in run.trainable.parameters.values())


def test_half_the_rows_keep_half(folder: Path, tmp_path: Path) -> None:
    run = _run(folder, tmp_path)
    assert 0.4 < activation_bytes(run, "reward", 4) / activation_bytes(run, "reward", 8) < 0.62


@pytest.mark.parametrize("recompute", [True, False])
def test_the_graph_keeps_what_the_base_computed_in_the_bases_dtype(
    folder: Path, tmp_path: Path, recompute: bool
) -> None:
    """Each number that the stream reads of the base takes two bytes less in bfloat16."""
    run = _run(folder, tmp_path)
    shape = base_shape(Checkpoint.open(folder).config)
    if recompute:
        assert run.trainable.recompute_activations()
    tokens: list[int] = []
    embedding = run.trainable.model.base.get_input_embeddings()
    with embedding.register_forward_hook(lambda _, i, __: tokens.append(i[0].numel())):
        wide = activation_bytes(run, "reward", 4)
    narrow = activation_bytes(_in_bfloat16(run), "reward", 4)
    read = shape.layers * (3 * shape.hidden + shape.ffn)  # x of two branches, a and m
    assert wide - narrow == pytest.approx(2 * tokens[0] * read, rel=0.1)


@pytest.mark.parametrize(
    ("signal", "options", "bfloat16"),
    [
        (EVERY, {}, True),
        (REWARD, {"kv": "base"}, True),
        (TOXICITY, {"norm": "base"}, True),
        (REWARD, {}, False),
    ],
    ids=["every", "last-kv-base", "classes-norm-base", "float32"],
)
def test_recomputed_layers_train_to_the_same_bits(
    tiny_llama: Path,
    tmp_path: Path,
    signal: Any,
    options: Any,
    bfloat16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "g", "reward", "toxicity:toxicity", **options)
    trained, kept = [], []
    for budget in (2**40, 0):
        monkeypatch.setattr(memory, "activation_budget", lambda run, budget=budget: budget)
        run = _run(folder, tmp_path, signal=signal)
        if bfloat16:
            _in_bfloat16(run)
        plan = plan_memory(run)
        assert plan.recompute == (budget == 0)
        run.passes = dict.fromkeys(run.passes, 1)
        kept.append(activation_bytes(run, *run.passes, 8))
        losses = [run.take_step()["loss"] for _ in range(3)]
        trained.append((losses, {n: p.detach() for n, p in run.trainable.parameters.items()}))
    assert kept[1] < 0.75 * kept[0]
    assert trained[0][0] == trained[1][0]
    assert all(torch.equal(trained[1][1][name], p) for name, p in trained[0][1].items())


def test_a_batch_that_is_too_large_goes_in_passes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, split = _run(folder, tmp_path), _run(folder, tmp_path)
    split.trainable.recompute_activations()
    limit = activation_bytes(split, "reward", 3)
    monkeypatch.setattr(memory, "activation_budget", lambda run: limit)
    plan = plan_memory(split)
    assert split.passes == plan.passes == {"reward": 3}  # of 3, 3 and 2 rows
    assert plan.activations <= limit
    assert "in 3 passes" in plan.description(1) and "run again" in plan.description(1)
    for _ in range(3):
        expected, got = whole.take_step(), split.take_step()
        assert got["loss"]["reward"] == pytest.approx(expected["loss"]["reward"], rel=1e-5)
        assert got["tokens"] == expected["tokens"]


def test_a_batch_that_fits_is_left_alone(folder: Path, tmp_path: Path) -> None:
    run = _run(folder, tmp_path, accumulate=2)
    plan = plan_memory(run)
    assert (plan.recompute, plan.passes) == (False, {"reward": 2})
    assert plan.activations == activation_bytes(run, "reward", 4)
    assert "again" not in plan.description(2) and "passes" not in plan.description(2)


def test_the_budget_grows_with_the_frozen_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(folder, tmp_path)
    assert memory.activation_budget(run) == memory._LEAST_BUDGET
    monkeypatch.setattr(memory, "_LEAST_BUDGET", 1)
    frozen = sum(p.nbytes for p in run.trainable.model.base.parameters())
    unused = run.trainable.model.insertions["main"].signals["reward"]["bias"].nbytes
    assert memory.activation_budget(run) == frozen + unused


@pytest.mark.parametrize("baseline", ["lora", "separate", "probe"])
def test_a_baseline_holds_no_graph_between_batches(
    folder: Path, tmp_path: Path, baseline: Any
) -> None:
    recipe = small_recipe(tmp_path)
    trainable = make_trainable(folder, recipe, baseline, tmp_path / "baseline", "cpu")
    run = _run(folder, tmp_path, trainable, REWARD)
    plan_memory(run)
    trainable.reader("reward")
    assert getattr(trainable, "_states", None) is None


def test_the_kl_of_a_lora_probe_is_counted_and_keeps_no_distribution(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path)
    probe: Any = make_trainable(folder, recipe, "lora-probe", tmp_path / "probe", "cpu")
    run = _run(folder, tmp_path, probe, REWARD)
    for name, parameter in probe.parameters.items():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    batch = run.data["reward"].train.batch(range(3))
    probe.reader("reward")
    got = probe.kl_to_base(batch)
    logs = probe.lm_head.logits(probe.final_states(batch)).log_softmax(-1)
    probe._scale_updates(0.0)
    base = probe.lm_head.logits(probe.run_decoder(batch)).log_softmax(-1)
    probe._scale_updates(1.0)
    each = (base.exp() * (base - logs)).sum(-1) * batch.attention_mask
    expected = each.sum(1) / batch.attention_mask.sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert got.min() > 0
    with_kl = activation_bytes(run, "reward", 3)
    # A state of each token for the product, and what the mask selects: no [tokens, vocabulary].
    distribution = 4 * int(batch.attention_mask.sum()) * logs.shape[-1]
    monkeypatch.setattr(probe, "kl_to_base", lambda batch: None)
    without = activation_bytes(run, "reward", 3)
    assert without < with_kl < without + distribution


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_another_dtype_have_autograds_bits(bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    linears = [DualInputLinear(24, 4, 6, bias), DualInputLinear(24, 4, 10, bias)]
    parameters = [p for linear in linears for p in linear.parameters()]
    for parameter in parameters:
        nn.init.normal_(parameter, generator=draw)
    x = torch.randn(3, 7, 24, generator=draw).bfloat16()
    u, z = torch.randn(21, 4, generator=draw), torch.randn(21, 16, generator=draw)
    u.requires_grad_(), z.requires_grad_()
    results = []
    for given in (x, x.float()):
        fused = FusedLinear(*linears)
        out = fused(given, u).sin() + fused.add_to(z, given, u).cos()
        gradients = torch.autograd.grad(out.sum(), [*parameters, u, z])
        results.append([out.detach(), *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_peak_sees_what_was_held_in_between() -> None:
    peak = PeakMemory("cpu")
    held = torch.ones(80_000_000)
    del held
    assert peak.bytes() > 250_000_000
