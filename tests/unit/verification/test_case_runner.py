"""Memory of a verification: one set of base modules for equal files, two on request."""

from pathlib import Path

import pytest
from torch import nn

from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.case_runner import ModelPair, open_pair, run_case
from tests.support.grafts import random_graft


@pytest.fixture(scope="module")
def grafted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair") / "graft"
    return random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16, signals=("reward",))


def _opened(graft: Path, base: Path, *, shared: bool) -> ModelPair:
    pair = open_pair(VerificationRequest(graft, base), dtype="float32", device="cpu", shared=shared)
    assert pair.otter is not None
    # Streams pack their weights when they first run.
    cases = VerificationRequest(graft, base).grid.cases(64)
    run_case(next(case for case in cases if case.dtype == "float32"), pair.candidate)
    return pair


def _held(*modules: nn.Module) -> int:
    """Bytes of all storages of parameters and buffers, each counted once."""
    storages = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_shared_modules_take_the_base_and_the_insertion(grafted: Path, tiny_llama: Path) -> None:
    pair = _opened(grafted, tiny_llama, shared=True)
    assert pair.otter is not None
    inserted = sum(p.nbytes for _, p in pair.otter.inserted_parameters())
    allowed = 1.2 * (_held(pair.base.model) + inserted)
    assert _held(pair.base.model, pair.candidate.model, pair.otter) <= allowed


def test_an_independent_base_is_another_one(grafted: Path, tiny_llama: Path) -> None:
    pair = _opened(grafted, tiny_llama, shared=False)
    both = _held(pair.base.model, pair.candidate.model)
    assert both == 2 * _held(pair.base.model)
