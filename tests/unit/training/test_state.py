"""States: packed and unpacked to the bit, whole, two kept."""

from pathlib import Path

import torch
from torch import nn

from otter_cli.training.state import StateFolder, pack_state, unpack_state

NOTES = {"step": 3, "guard": {"first": [0.1, 1 / 3]}}


def trained(seed: int, steps: int) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: nn.Parameter(torch.randn(4, 3, generator=generator)) for name in ("a/b", "c")
    }
    optimiser = torch.optim.AdamW(parameters.values(), lr=0.1)
    for _ in range(steps):
        step(parameters, optimiser)
    return parameters, optimiser


def step(parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    sum((p**3).sum() for p in parameters.values()).backward()
    optimiser.step()
    optimiser.zero_grad()


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    parameters, optimiser = trained(0, steps=3)
    states = StateFolder(tmp_path)
    states.save(3, pack_state(parameters, optimiser), NOTES)
    others, other_optimiser = trained(1, steps=0)
    state = states.load()
    assert state is not None and state.step == 3 and state.metadata == NOTES
    unpack_state(state.tensors, others, other_optimiser)
    for _ in range(3):
        step(parameters, optimiser)
        step(others, other_optimiser)
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    for number in (2, 4, 10):
        states.save(number, {"value/a": torch.full((1,), float(number))}, {"step": number})
    assert [p.name for p in sorted(states.path.iterdir())] == [
        "state-00000004.safetensors",
        "state-00000010.safetensors",
    ]
    assert states.metadata() == {"step": 10}


def test_what_a_killed_writer_leaves_is_no_state(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    assert states.load() is None and states.metadata() is None
    states.save(1, {"value/a": torch.ones(1)}, {"step": 1})
    (states.path / ".state-00000002.safetensors.otter-staging").write_bytes(b"half")
    found = states.load()
    assert found is not None and found.step == 1


def test_clear_leaves_none(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    states.save(1, {"value/a": torch.ones(1)}, {})
    states.clear()
    assert states.newest() is None
