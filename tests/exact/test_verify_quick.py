"""The quick grid, as the verb runs it, finds every planted fault in a base of nine layers, of which
it compares three: in a layer of a kind of its own, and in layers that all have the fault's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from otter_cli.model.forward_context import ACTIVE_CONTEXT
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.grid import Grid
from otter_cli.verification.poison import poison_groups
from otter_cli.verification.report import decide
from otter_cli.verification.run_verification import verify
from tests.support import planted_faults as faults
from tests.support.grafts import random_graft
from tests.support.planted_faults import plant

DEPTH, HIDDEN_IN = 9, 6  # the quick trace compares layers 0, 4 and 8
GRID = Grid(dtypes=("float32",), attentions=("sdpa",))


@pytest.fixture(scope="module")
def graft(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_checkpoint("llama", num_hidden_layers=DEPTH)
    folder = tmp_path_factory.mktemp("quick") / "graft"
    return random_graft(base, folder, hidden=8, heads=2, ffn=16, signals=("reward",))


def in_every_layer(change: faults.Change, when: faults.When) -> Callable[[OtterForCausalLM], None]:
    """The same hook on all layers, which acts in one of them, so all layers are of one kind."""

    def fault(model: OtterForCausalLM) -> None:
        layers = model.capture.layers

        def hook(module: nn.Module, inputs: Any, named: dict[str, Any], h: Any) -> Any:
            record = ACTIVE_CONTEXT.get()
            if record is None or module is not layers[HIDDEN_IN] or not when(model, h, named):
                return None
            return change(h, record.streams["main"])

        for layer in layers:
            layer.register_forward_hook(hook, with_kwargs=True)

    return fault


FAULTS: dict[str, tuple[faults.Change, faults.When]] = {
    "below the last bit": (faults.add(1e-12), faults.always),
    "norm over both": (faults.norm_over_both, faults.always),
    "in place": (faults.add_in_place, faults.always),
    "in place inside": (faults.add_in_place_inside, faults.always),
    "a number": (faults.scale_by_number, faults.always),
    "numpy": (faults.scale_by_numpy, faults.always),
    "random numbers": (faults.draw_numbers, faults.always),
    "after position 100": (faults.add(1e-3), faults.after_position(100)),
    "in cached steps": (faults.add(1e-3), faults.in_cached_steps),
    "in batches": (faults.add(1e-3), faults.in_batches),
    "under sdpa": (faults.add(1e-3), faults.under_sdpa),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "spread"),
    [*((fault, True) for fault in FAULTS), ("below the last bit", False), ("in place", False)],
)
def test_a_quick_grid_finds_the_fault(
    graft: Path, monkeypatch: pytest.MonkeyPatch, fault: str, spread: bool
) -> None:
    change, when = FAULTS[fault]
    plant(monkeypatch, in_every_layer(change, when) if spread else faults.leak(change, when))
    report = verify(VerificationRequest(graft, grid=GRID))
    verdict = decide(report)
    assert verdict.name == "different", verdict.sentence
    assert report.leaks and report.control == len(report.results)
    layer = HIDDEN_IN if spread else 1
    # The first operation that reads the result may be the one that shows the fault.
    assert {path.leak.module for path in report.leaks if path.leak} == {f"model.layers.{layer}"}
    assert {path.layers for path in report.paths} == {(0, 4, 8) if spread else (0, 1, 4, 8)}


@pytest.mark.slow
def test_without_a_fault_it_is_exact_by_construction_and_says_what_was_compared(
    graft: Path,
) -> None:
    verdict = decide(verify(VerificationRequest(graft, grid=GRID)))
    assert verdict.name == "exact by construction"
    assert "in layers 0, 4 and 8 of 9, and the others are of the same kinds" in verdict.sentence


@pytest.mark.slow
def test_a_constant_that_code_sets_in_a_layer_that_is_not_compared_shows_in_the_logits(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No inserted value is read and the operations are the same, so only the grid can find it."""

    def fault(model: OtterForCausalLM) -> None:
        layers = model.capture.layers

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if ACTIVE_CONTEXT.get() is not None and module is layers[HIDDEN_IN - 1]:
                layers[HIDDEN_IN].self_attn.scaling = 0.3  # type: ignore[union-attr]

        for layer in layers:
            layer.register_forward_hook(hook)

    plant(monkeypatch, fault)
    report = verify(VerificationRequest(graft, grid=GRID, independent=True))
    assert decide(report).name == "different"
    # The softmax of a single score does not depend on its scale.
    assert {result.case.length for result in report.results if result.equal} <= {1}
    # The first run changes the layer permanently. Then it is of a kind of its own.
    assert {HIDDEN_IN} <= {layer for path in report.paths for layer in path.layers}


def test_every_tensor_is_in_one_group_and_those_of_chosen_layers_are_alone() -> None:
    names = [f"otter.main.layers.{i}.{part}" for i in range(9) for part in ("ffn.norm", "out.h")]
    names += ["otter.main.norm.weight"]
    groups = poison_groups(names, (0, 4, 8))
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert sorted(map(len, groups)) == [1] * 7 + [6, 6]
    assert poison_groups(names, None) == [[name] for name in names]


@pytest.mark.slow
def test_of_a_group_that_moves_logits_the_tensor_is_named(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(model: OtterForCausalLM) -> None:
        weight = dict(model.inserted_parameters())
        (culprit,) = [
            tensor for name, tensor in weight.items() if name.endswith("layers.6.ffn.norm.weight")
        ]

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            return (
                output + 1 if ACTIVE_CONTEXT.get() is not None and culprit.isnan().any() else None
            )

        model.capture.layers[4].register_forward_hook(hook)

    plant(monkeypatch, fault)
    report = verify(VerificationRequest(graft, grid=GRID))
    (each,) = report.poison_each
    assert each.moved is not None and each.moved[0].endswith("layers.6.ffn.norm.weight")
    assert each.together and each.grouped > each.together
