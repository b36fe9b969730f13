"""Action values of a loaded graft: the frozen head's own rows, gradients from the start."""

from pathlib import Path

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.model.otter import OtterForCausalLM
from tests.conftest import TinyCheckpoint
from tests.support.families import CASES, Case
from tests.support.grafts import graft_for, random_graft

IDS = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 4, 2]])


NAMED = [case for case in CASES if case.family in ("llama", "granite", "gemma2")]


# Granite divides its logits, Gemma 2 caps them: an action value takes the bare rows.
@pytest.mark.parametrize("case", NAMED, ids=str)
def test_candidates_read_the_frozen_rows(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, case: Case
) -> None:
    signals = ("low=vocabulary:4", "full=vocabulary:full")
    folder = random_graft(case.write(tiny_checkpoint), tmp_path / "graft", signals=signals)
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        out = model(IDS)
        matrix = model.base.get_output_embeddings().weight
        weights = dict(model.insertions["main"].signals["low"].items())
        v = out.inserted_state["main"]
        query = out.base_state @ weights["factor_base"].T + v @ weights["factor_inserted"].T
        state = out.base_state @ weights["base"].T + v @ weights["inserted"].T + weights["bias"]
        expected = state + query @ weights["factor_out"].T @ matrix.T
        torch.testing.assert_close(out.signals["low"], expected, rtol=1e-10, atol=1e-10)
        tokens = torch.tensor([[[3, 4]] * 5, [[9, 1]] * 5])
        for name, scores in out.signals.items():
            few = model.read_signal(name, out.base_state, out.inserted_state, tokens)
            torch.testing.assert_close(few, scores.gather(-1, tokens), rtol=1e-10, atol=1e-10)


def test_a_new_signal_of_action_values_reads_zero_and_gets_gradients(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = graft_for(tiny_llama, tmp_path / "graft", signals=("action-reward",))
    model = OtterForCausalLM.from_pretrained(folder)
    head = dict(model.insertions["main"].signals["action-reward"].items())
    scores = model(IDS).signals["action-reward"]
    assert torch.equal(scores, torch.zeros_like(scores))
    scores[..., 3].sum().backward()
    assert head["factor_out"].grad is not None and head["factor_out"].grad.any()
    with torch.no_grad():
        head["factor_out"] -= 0.1 * head["factor_out"].grad
    model(IDS).signals["action-reward"][..., 3].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.values())


def test_tokens_of_a_signal_that_scores_none_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = graft_for(tiny_llama, tmp_path / "graft", signals=("reward",))
    model = OtterForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        out = model(IDS)
    with pytest.raises(OtterError, match="'reward' is of kind value: it reads no tokens"):
        model.read_signal("reward", out.base_state, out.inserted_state, IDS[..., None])
