"""The grids: their cases fit any window, and depend on the seed only."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.verification.grid import FORWARDS, GENERATES, Case, Grid


def test_the_quick_grid_holds_what_it_promises() -> None:
    cases = Grid().cases(512)
    assert len(set(cases)) == len(cases)
    for dtype in ("float32", "bfloat16"):
        for attention in ("eager", "sdpa"):
            here = [c for c in cases if (c.dtype, c.attention) == (dtype, attention)]
            prefills = {c.length for c in here if c.path == "prefill" and c.batch == 1}
            assert {1, 2, 7, 33, 128, 256 if attention == "eager" else 512} <= prefills
            assert any(c.batch == 4 and c.padding == "left" and c.steps for c in here)
            assert {"decode", "chunked", "static", "greedy"} <= {c.path for c in here}
            assert any(c.path == "decode" and c.length > 100 for c in here)


def test_the_full_grid_holds_quick_and_every_path() -> None:
    quick, full = Grid().cases(512), Grid("full").cases(512)
    assert set(quick) < set(full)
    assert {case.path for case in full} == {*FORWARDS, *GENERATES}
    assert {case.dtype for case in full} == {"float32", "bfloat16", "float16"}
    assert {1, 2} <= {case.threads for case in full}
    windows = {c.attention for c in full if (c.path, c.length, c.keep) == ("prefill", 512, 0)}
    assert windows == {"eager", "sdpa"}
    assert max(case.length for case in Grid("full").cases(100_000)) <= 2048


@given(
    st.integers(1, 3000), st.sampled_from(["quick", "full"]), st.integers(0, 30), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_every_case_fits_the_window_and_models_come_in_one_run(
    positions: int, name: str, random: int, seed: int
) -> None:
    cases = Grid(name, random, seed).cases(positions)  # type: ignore[arg-type]
    assert cases
    for case in cases:
        assert case.length >= 1
        assert case.length + case.steps <= max(positions, 1 + case.steps)
        assert case.padding == "none" or case.batch > 1
    loads = [(case.device, case.dtype) for case in cases]
    assert len(set(loads)) == 1 + sum(a != b for a, b in pairwise(loads))


def test_seeds_decide_on_random_cases_and_on_tokens() -> None:
    grid = Grid(random=20, seed=3)
    assert grid.cases(128) == Grid(random=20, seed=3).cases(128)
    other = Grid(random=20, seed=4).cases(128)
    assert grid.cases(128) != other
    assert {replace(case, seed=0) for case in Grid().cases(128)} == {
        replace(case, seed=0) for case in Grid(seed=4).cases(128)
    }
    assert not {case.seed for case in Grid().cases(128)} & {c.seed for c in other}


def test_more_random_cases_keep_the_ones_before() -> None:
    assert set(Grid(random=5).cases(128)) < set(Grid(random=9).cases(128))


def test_a_case_says_what_it_is() -> None:
    case = Case("decode", 7, batch=3, padding="left", steps=2, dtype="bfloat16")
    assert str(case) == "decode, 7 tokens, batch 3, left padding, 2 steps (bfloat16, sdpa)"
    assert case.kind == "decode, left padding"
    assert Case("prefill", 7, batch=3).kind == "prefill, batch"


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(OtterError, match="float8"):
        Grid(dtypes=("float8",))
