"""A drafter in Medusa's format gives our future heads' logits; other heads are refused."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from otter_cli.core.errors import OtterError
from otter_cli.graft.surgery import compose
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.serving.vllm.export import export_vllm
from tests.conftest import Otter
from tests.support.grafts import random_graft

FUTURE = ("reward", "future:2,plain")


def medusa(folder: Path, states: torch.Tensor) -> torch.Tensor:
    """`x + silu(x W + b)` and one unembedding for all heads, as vLLM's class: [rows, n, vocab]."""
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_size"] == states.shape[-1] and config["original_lm_head"]
    tensors = load_file(folder / "model.safetensors")
    found = []
    for head in range(config["num_heads"]):
        block = f"blocks.{head}.layers.0"
        inner = F.linear(states, tensors[f"{block}.weight"], tensors[f"{block}.bias"])
        found.append(F.linear(states + F.silu(inner), tensors["lm_heads.0.weight"]))
    return torch.stack(found, 1)


def said(graft: Path, drafter: Path) -> None:
    """Compares the drafter with the graft's heads, over the states that an engine carries."""
    model = OtterForCausalLM.from_pretrained(graft)
    with torch.no_grad():
        out = model(torch.tensor([[1, 5, 6, 7, 2]]))
        inserted = [state[0] for state in out.inserted_state.values() if state is not None]
        states = torch.cat([out.base_state[0], *inserted], -1)
        torch.testing.assert_close(medusa(drafter, states), out.signals["future"][0])


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_drafter_says_what_the_heads_say(hidden: int, tiny_llama: Path, tmp_path: Path) -> None:
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=hidden, signals=FUTURE)
    done = export_vllm(graft, tmp_path / "served", draft="future")
    assert {"drafter/config.json", "drafter/model.safetensors"} <= set(done.files)
    assert "drafts 2 tokens a step" in done.statement
    said(graft, tmp_path / "served" / "drafter")


def test_a_second_insertion_s_heads_read_their_own_state(tiny_llama: Path, tmp_path: Path) -> None:
    one = random_graft(tiny_llama, tmp_path / "one", hidden=8, signals=("reward",))
    other = random_graft(
        tiny_llama, tmp_path / "other", hidden=16, signals=("future:2,plain",), seed=1
    )
    compose(one, other, tmp_path / "both")
    export_vllm(tmp_path / "both", tmp_path / "served", draft="future")
    said(tmp_path / "both", tmp_path / "served" / "drafter")


def test_what_scores_does_not_draft(tiny_llama: Path, tmp_path: Path) -> None:
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, signals=FUTURE)
    for name, message in (("reward", "predicts no tokens"), ("futur", "no signal 'futur'")):
        with pytest.raises(OtterError, match=message):
            export_vllm(graft, tmp_path / "served", draft=name)
    assert not (tmp_path / "served").exists()


def test_heads_that_read_drafted_tokens_are_no_medusa_heads(
    tiny_llama: Path, tmp_path: Path
) -> None:
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, signals=("future:2",))
    with pytest.raises(OtterError, match="read the tokens drafted before") as error:
        export_vllm(graft, tmp_path / "served", draft="future")
    assert "future:3,plain" in error.value.hint


def test_only_an_export_for_vllm_has_a_drafter(
    tiny_llama: Path, tmp_path: Path, otter_here: Otter
) -> None:
    graft = random_graft(tiny_llama, tmp_path / "graft", hidden=8, signals=FUTURE)
    done = otter_here("export", graft, tmp_path / "out", "--to", "adapter", "--draft", "future")
    assert done.returncode == 2 and "--draft goes with --to vllm" in done.stderr
    assert not (tmp_path / "out").exists()
