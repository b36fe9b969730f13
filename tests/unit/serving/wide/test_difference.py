"""How differences are counted, on invented numbers and on a real export."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.serving.wide.export import (
    TOLERANCES,
    compare_outputs,
    measure_all_dtypes,
    measure_difference,
    write_wide,
)
from tests.support.grafts import random_graft


def test_counts() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0], [5.0, 1.0, 1.0]]])
    others = logits.clone()
    others[0, 0, 1] = 3.0  # moves one logit, and with it the argmax
    others[0, 1, 2] = 1.5
    found = compare_outputs(logits, others, {}, {}, 0.1)
    assert (found.tokens, found.logits, found.moved, found.flipped) == (2, 6, 2, 1)
    assert found.largest == 2.0 and found.dtype == "float32"
    assert found.within_tolerance and found.lost == 0
    # The keys of `export --json`.
    assert " ".join(asdict(found)) == "dtype tokens logits moved largest flipped lost signals"


def test_numbers_that_are_lost_are_counted_apart() -> None:
    logits = torch.zeros(1, 2, 3)
    others = logits.clone()
    others[0, 0, 0], others[0, 1, 1] = float("nan"), float("inf")
    found = compare_outputs(logits, others, {}, {}, 0.1)
    assert (found.lost, found.moved, found.largest) == (2, 2, 0.0)
    assert not found.within_tolerance


@pytest.mark.parametrize(
    ("got", "within"), [([1.0, -8.0], True), ([1.0, -8.7], True), ([1.0, -9.0], False),
                        ([1.0, float("nan")], False)]
)  # fmt: skip
def test_signals_are_held_to_a_tolerance_of_their_size(got: list[float], within: bool) -> None:
    logits = torch.zeros(1, 2, 3)
    signals, others = {"reward": torch.tensor([1.0, -8.0])}, {"reward": torch.tensor(got)}
    found = compare_outputs(logits, logits, signals, others, 0.1)
    assert found.within_tolerance is within
    assert found.signals["reward"].scale == 8.0


def test_both_dtypes_are_measured_on_the_same_tokens(tiny_checkpoint: Any, tmp_path: Path) -> None:
    base = tiny_checkpoint("llama", dtype="bfloat16")
    graft = random_graft(base, tmp_path / "graft", hidden=8, heads=2, ffn=16)
    write_wide(graft, tmp_path / "wide")
    differences, unmeasured = measure_all_dtypes(graft, tmp_path / "wide")
    assert [d.dtype for d in differences] == ["float32", "bfloat16"] and not unmeasured
    for found in differences:
        assert (found.tokens, found.logits) == (4 * 64, 4 * 64 * 97)
        assert found.largest < 1 and not found.lost
        assert set(found.signals) == {"reward", "toxicity", "future"}
        # Stored in bf16, so that even fp32 arithmetic is held to bf16's rounding.
        assert {s.tolerance for s in found.signals.values()} == {TOLERANCES[torch.bfloat16]}
        assert found.within_tolerance
    assert differences == measure_all_dtypes(graft, tmp_path / "wide")[0]


def test_another_grafts_signals_are_found_to_differ(tiny_llama: Path, tmp_path: Path) -> None:
    one = random_graft(tiny_llama, tmp_path / "one", hidden=8, heads=2, seed=1)
    other = random_graft(tiny_llama, tmp_path / "other", hidden=8, heads=2, seed=2)
    write_wide(other, tmp_path / "wide")
    found = measure_difference(one, tmp_path / "wide", torch.float32)
    assert not found.within_tolerance and found.largest < 1e-3


def test_what_does_not_fit_is_said_so(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, heads=2)
    write_wide(graft, tmp_path / "wide")
    parameters = sum(p.numel() for p in _parameters(tmp_path / "wide"))

    class Little:
        available = parameters * 3

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    differences, unmeasured = measure_all_dtypes(graft, tmp_path / "wide")
    assert [d.dtype for d in differences] == ["bfloat16"]
    assert "memory" in unmeasured["float32"]


def _parameters(folder: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors").values()
