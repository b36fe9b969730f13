"""No false alarms on correct grafts, over random grids, families and real checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.case_runner import max_positions, open_pair
from otter_cli.verification.compare import CaseResult, compare, poison_cases
from otter_cli.verification.grid import FORWARDS, GENERATES, Case, Grid
from otter_cli.verification.report import decide
from otter_cli.verification.run_verification import verify
from tests.support.families import CASES
from tests.support.families import Case as Family
from tests.support.grafts import random_graft

SEEDS, EACH = 50, 2
DTYPES = ("float32", "bfloat16", "float16")


def drawn(base: Path, dtype: str) -> list[Case]:
    """The random part of the grids `--random 4 --seed SEED`, for every seed whose turn it is."""
    window, cases = max_positions(base), []
    for seed in range(DTYPES.index(dtype), SEEDS, len(DTYPES)):
        named = set(Grid(seed=seed, dtypes=(dtype,)).cases(window))
        grid = Grid(random=EACH, seed=seed, dtypes=(dtype,))
        cases += [case for case in grid.cases(window) if case not in named]
    return cases


@pytest.mark.slow
def test_fifty_random_grids(tiny_llama: Path, tmp_path: Path) -> None:
    seen: list[Case] = []
    for kv in ("own", "base"):
        folder = random_graft(tiny_llama, tmp_path / kv, hidden=8, heads=2, ffn=16, kv=kv)
        for dtype in DTYPES:
            pair = open_pair(VerificationRequest(folder), dtype=dtype, device="cpu", shared=True)
            assert pair.otter is not None
            compared = list(compare(pair, drawn(tiny_llama, dtype)))
            ran = [result for result in compared if isinstance(result, CaseResult)]
            assert len(ran) == len(compared)
            for result in poison_cases(pair, pair.otter, ran, every_value=False):
                assert result.equal and result.control, f"{result.case}: {result.failure}"
                assert result.poison and all(result.poison.values()), str(result.case)
                seen.append(result.case)
    assert len(seen) == 2 * SEEDS * EACH
    assert {case.path for case in seen} == {*FORWARDS, *GENERATES}


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES, ids=str)
def test_every_family_is_exact_by_construction(
    tiny_checkpoint: Any, tmp_path: Path, family: Family
) -> None:
    """All levels as the verb runs them, on folders that share no files."""
    base = family.write(tiny_checkpoint, dtype="float32", tied=False)
    form = {"heads": 2} if family.full else {}
    folder = random_graft(base, tmp_path / "g", hidden=8, ffn=16, signals=("reward",), **form)
    attention = "eager" if family.eager_only else "sdpa"
    grid = Grid(dtypes=("float32",), attentions=(attention,))
    found = verify(VerificationRequest(folder, base, grid, independent=True))
    verdict = decide(found)
    assert verdict.name == "exact by construction", verdict.sentence
    assert found.paths and found.poison_each and len(found.results) > 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361", "chat-7m"])
def test_real_checkpoints_are_exact_by_construction(
    shared: Path, tmp_path: Path, name: str
) -> None:
    base = shared / "models" / name
    folder = random_graft(base, tmp_path / "g", hidden=16, heads=1, ffn=16)
    grid = Grid(dtypes=("bfloat16",), attentions=("sdpa",))
    verdict = decide(verify(VerificationRequest(folder, base, grid)))
    assert verdict.name == "exact by construction", verdict.sentence
