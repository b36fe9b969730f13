"""Each planted fault is found, by the level that should find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.case_runner import ModelPair, open_pair
from otter_cli.verification.compare import CaseResult, compare, poison_cases
from otter_cli.verification.grid import Case
from otter_cli.verification.structure import PathTrace, trace_path, traced_cases
from tests.support.grafts import random_graft
from tests.support.planted_faults import (
    Change,
    When,
    add,
    add_in_place,
    add_in_place_inside,
    after_position,
    always,
    draw_numbers,
    in_batches,
    in_cached_steps,
    leak,
    norm_over_both,
    plant,
    scale_by_number,
    scale_by_numpy,
    unchanged_but_rerun,
    under_sdpa,
)

CASES = [
    Case("prefill", 7, attention="eager"),
    Case("prefill", 7),
    Case("prefill", 120),
    Case("prefill", 9, batch=3, padding="left"),
    Case("decode", 7, steps=2),
    Case("sample", 7, steps=3),
]


@dataclass(frozen=True)
class Caught:
    """The results of the levels for one faulty graft."""

    results: list[CaseResult]
    paths: list[PathTrace]

    def unequal(self) -> set[str]:
        return {str(result.case) for result in self.results if not result.equal}

    def poison_moves(self) -> set[str]:
        """Cases that poison changes. Sampling from NaN raises an error, which counts too."""
        return {str(r.case) for r in self.results if r.failure or not all(r.poison.values())}

    def leaking(self) -> set[str]:
        return {str(path.case) for path in self.paths if path.leak}


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "graft"
    return random_graft(tiny_llama, folder, hidden=8, heads=2, ffn=16, signals=("reward",))


@pytest.fixture
def caught(graft: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change, When], Caught]:
    def run(change: Change, when: When = always) -> Caught:
        plant(monkeypatch, leak(change, when))
        pair = open_pair(VerificationRequest(graft), dtype="float32", device="cpu", shared=True)
        found = judged(pair, every_value=False)
        assert len(found.results) == len(CASES) and all(r.control for r in found.results)
        return found

    return run


def judged(pair: ModelPair, *, every_value: bool) -> Caught:
    assert pair.otter is not None
    results = [result for result in compare(pair, CASES) if isinstance(result, CaseResult)]
    paths = traces(pair)
    return Caught(poison_cases(pair, pair.otter, results, every_value=every_value), paths)


def traces(pair: ModelPair) -> list[PathTrace]:
    assert pair.otter is not None
    return [trace_path(pair, pair.otter, case) for case in traced_cases(CASES, window=128)]


def names(cases: list[Case]) -> set[str]:
    return set(map(str, cases))


TRACED = traced_cases(CASES, window=128)


def test_without_a_fault_nothing_is_caught(graft: Path) -> None:
    pair = open_pair(VerificationRequest(graft), dtype="float32", device="cpu", shared=True)
    found = judged(pair, every_value=True)
    assert not found.unequal() and not found.poison_moves() and not found.leaking()


def test_a_leak_below_the_last_bit_is_seen_by_the_trace_and_by_poison(caught: Callable) -> None:
    found = caught(add(1e-12))
    # Rounding hides it in most logits, so a grid alone might not find it.
    assert found.leaking() == names(TRACED)
    assert found.poison_moves() == names(CASES)
    leak = found.paths[0].leak
    assert leak is not None and leak.module == "model.layers.1"
    assert leak.operation.startswith("aten.mean") and "reads what the insertion made" in leak.what


def test_a_norm_over_the_wide_state(caught: Callable) -> None:
    found = caught(norm_over_both)
    assert found.unequal() == found.poison_moves() == names(CASES)
    assert found.leaking() == names(TRACED)


@pytest.mark.parametrize("change", [add_in_place, add_in_place_inside])
def test_an_in_place_addition(caught: Callable, change: Change) -> None:
    found = caught(change)
    assert found.unequal() == names(CASES) and found.leaking() == names(TRACED)


def test_an_in_place_addition_inside_the_insertion_is_named(caught: Callable) -> None:
    leak = caught(add_in_place_inside).paths[0].leak
    assert leak.operation == "aten.add_.Tensor"
    assert (leak.module, leak.what) == ("model.layers.1", "writes to a tensor of the base's")


@pytest.mark.parametrize("change", [scale_by_number, scale_by_numpy])
def test_a_python_number_is_a_way_out_too(caught: Callable, change: Change) -> None:
    found = caught(change)
    assert found.leaking() == names(TRACED)
    assert found.poison_moves() == names(CASES)


def test_after_position_100_only(caught: Callable) -> None:
    found = caught(add(1e-3), after_position(100))
    assert found.unequal() == {str(case) for case in CASES if case.length == 120}
    assert found.leaking() == {str(case) for case in TRACED if case.length + case.steps > 101}


def test_in_cached_decoding_only(caught: Callable) -> None:
    found = caught(add(1e-3), in_cached_steps)
    assert found.unequal() == {str(case) for case in CASES if case.steps}
    assert found.leaking() == {str(case) for case in TRACED if case.steps or case.chunk}


def test_in_batches_only(caught: Callable) -> None:
    found = caught(add(1e-3), in_batches)
    assert found.unequal() == {str(case) for case in CASES if case.batch > 1}
    assert found.leaking() == {str(case) for case in TRACED if case.batch > 1}


def test_under_sdpa_only(caught: Callable) -> None:
    found = caught(add(1e-3), under_sdpa)
    assert found.unequal() == {str(case) for case in CASES if case.attention == "sdpa"}
    assert found.leaking() == {str(case) for case in TRACED if case.attention == "sdpa"}


def test_numbers_drawn_from_the_base_s_generator(caught: Callable) -> None:
    found = caught(draw_numbers)
    assert found.unequal() == {str(case) for case in CASES if case.path == "sample"}
    assert found.leaking() == names(TRACED)
    assert "draws random numbers" in found.paths[0].leak.what


def test_an_operation_more_than_the_base_runs_is_no_way_of_its_own(caught: Callable) -> None:
    found = caught(unchanged_but_rerun)
    assert not found.unequal()
    assert found.leaking() == names(TRACED)
    assert "is not the base's own" in found.paths[0].leak.what
