"""The inserted stream in every family: gradients, cached decoding, selected layers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft

TOKENS = torch.randint(3, 97, (2, 14), generator=torch.Generator().manual_seed(0))


def _forms() -> list[Any]:
    forms = [
        (case, {"heads": 2, "kv": kv}) for case in CASES if case.full for kv in ("own", "base")
    ]
    forms += [(case, {}) for case in CASES if not case.full]
    return [pytest.param(case, form, id=f"{case}-{form.get('kv', 'ffn')}") for case, form in forms]


@pytest.mark.parametrize(("case", "form"), _forms())
def test_gradients_reach_every_inserted_tensor_and_nothing_else(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, form: dict[str, Any]
) -> None:
    base = case.write(tiny_checkpoint)
    model = OtterForCausalLM.from_pretrained(
        random_graft(base, tmp_path / "g", hidden=8, ffn=16, **form)
    )
    out = model(TOKENS)
    assert not out.logits.requires_grad and not out.base_state.requires_grad
    sum(signal.square().mean() for signal in out.signals.values()).backward()
    for name, parameter in model.inserted_parameters():
        assert parameter.grad is not None, name
        # Without a rotation, a key's bias shifts all scores of a query, and softmax ignores it.
        if not (name.endswith("key.bias") and not case.rotary):
            assert parameter.grad.abs().max() > 1e-7, name
    assert all(p.grad is None and not p.requires_grad for p in model.base.parameters())


@pytest.mark.parametrize(("case", "form"), _forms())
def test_signals_from_a_cache_are_those_of_a_full_forward(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, form: dict[str, Any]
) -> None:
    base, layers = case.write(tiny_checkpoint), (0, 2)
    folder = random_graft(base, tmp_path / "g", hidden=8, ffn=16, layers=layers, **form)
    model = OtterForCausalLM.from_pretrained(folder)
    cache = model.new_cache()
    with torch.no_grad():
        full = model(TOKENS)
        steps = [model(TOKENS[:, :5], past_key_values=cache, use_cache=True)]
        for at in range(5, 14):
            steps.append(model(TOKENS[:, at : at + 1], past_key_values=cache, use_cache=True))
    for name, expected in full.signals.items():
        got = torch.cat([step.signals[name] for step in steps], 1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
