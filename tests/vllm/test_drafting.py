"""Future heads as a drafter: vLLM's Medusa class gives their logits, and the text stays stock's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoTokenizer

from otter_cli.serving.vllm.export import export_vllm
from tests.support.grafts import random_graft
from tests.vllm.conftest import EAGER, Ask
from tests.vllm.support import mixed_prompts, requests

HEADS = 2
FORMS: dict[str, dict[str, Any]] = {
    "heads-alone": {"hidden": 0},
    "insertion": {"hidden": 32, "kv": "base", "heads": 4, "ffn": 88},
}


@pytest.fixture(scope="module")
def prompts(shared: Path, base: Path) -> list[list[int]]:
    return mixed_prompts(shared, AutoTokenizer.from_pretrained(base), 24)


def asked(prompts: list[list[int]]) -> list[Any]:
    return [requests(prompts, max_tokens=16, temperature=0.0)]


@pytest.fixture(scope="module")
def stock(base: Path, prompts: list[list[int]], engine: Ask) -> Any:
    return engine(base, asked(prompts))["passes"][0]["rows"]


def wanted(base: Path, graft: Path, states: torch.Tensor) -> torch.Tensor:
    """`E (y + silu(W [y ; v] + b))` of each head: [states, n, vocab]."""
    prefix = "otter.main.signals.future."
    own = {n.removeprefix(prefix): t for n, t in load_file(graft / "otter.safetensors").items()}
    rows = load_file(base / "model.safetensors")["model.embed_tokens.weight"].float()
    y, v = states[:, : rows.shape[1]], states[:, rows.shape[1] :]
    block = F.linear(y, own["base"], own["bias"])
    if "inserted" in own:
        block = block + F.linear(v, own["inserted"])
    return F.linear(y[:, None] + F.silu(block).unflatten(-1, (HEADS, -1)), rows)


@pytest.mark.parametrize("form", FORMS)
def test_drafts_are_the_heads_and_the_text_is_stock_s(
    form: str, base: Path, prompts: list[list[int]], stock: Any, engine: Ask, tmp_path: Path
) -> None:
    signals = ("reward", "future:2,plain")
    graft = random_graft(base, tmp_path / "graft", scale=0.02, signals=signals, **FORMS[form])
    export_vllm(graft, tmp_path / "served", draft="future")
    drafter = {"method": "medusa", "model": str(tmp_path / "served/drafter")}
    speculative = {"speculative_config": {**drafter, "num_speculative_tokens": HEADS}}
    settings = {**EAGER, **speculative, "disable_log_stats": False}
    states = torch.randn(8, 256 + FORMS[form]["hidden"], generator=torch.Generator().manual_seed(0))
    # Heads alone need no plugin: stock vLLM drafts with them, beside the base.
    model = tmp_path / "served" if FORMS[form]["hidden"] else base
    answer = engine(model, asked(prompts), settings, states=states.tolist())
    assert answer["passes"][0]["rows"] == stock
    found = torch.tensor(answer["drafts"]["logits"])
    torch.testing.assert_close(found, wanted(base, graft, states), rtol=1e-4, atol=1e-4)
    print(f"{form}: {answer['drafts']['accepted']} drafted tokens accepted")
    assert answer["drafts"]["accepted"] > 0
