"""Every family and layout that `graft` accepts is generated from, trained one step and verified;
greedy text is that of transformers' `generate`.

Not the full product: three runs a family, over which every value of every other factor comes up.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.graft.manifest import Manifest
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.recipe import Recipe
from otter_cli.training.run import train
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.grid import Case as Run
from otter_cli.verification.grid import Grid
from otter_cli.verification.report import decide
from otter_cli.verification.run_verification import verify
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft
from tests.support.training import REWARD, small_recipe

WHOLE: dict[str, Any] = {"hidden": 8, "heads": 2, "ffn": 16}
INSERTIONS: tuple[dict[str, Any], ...] = (
    {**WHOLE, "kv": "own", "norm": "own"},
    {**WHOLE, "kv": "base", "norm": "base"},
    {**WHOLE, "ffn": 0, "kv": "base", "norm": "own", "layers": (0, 2)},
    {**WHOLE, "heads": 0, "norm": "base", "layers": (1,)},
    {**WHOLE, "kv": "own", "norm": "base", "embedding": "zeros", "dtype": "BF16"},
    {"hidden": 0, "heads": 0, "ffn": 0},
)
STORED: tuple[dict[str, Any], ...] = (
    {"dtype": "float32"},
    {"dtype": "float32", "tied": True, "max_shard": "20kB"},
    {"dtype": "bfloat16", "max_shard": "20kB"},
    {"dtype": "bfloat16", "tied": True},
)
# Longer than every window of the table (8), and each alone: no padding between two grids.
PROMPTS = ([5, 9, 33, 40, 12, 60, 61, 62, 63, 20], [7, 8, 30])
NEW = 14


@dataclass(frozen=True)
class Few(Grid):
    """One case of each kind that a served model goes through, in the dtype of the file."""

    def cases(self, positions: int) -> list[Run]:
        setting = {"attention": self.attentions[0], "dtype": self.dtypes[0]}
        return [
            Run("prefill", 20, **setting),
            Run("decode", 9, batch=2, padding="left", steps=3, **setting),
            Run("greedy", 9, steps=4, **setting),
        ]


def _runs() -> list[Any]:
    runs = []
    for index, case in enumerate(CASES):
        for turn in range(3):
            insertion = INSERTIONS[(index + 2 * turn + index // len(INSERTIONS)) % len(INSERTIONS)]
            stored = STORED[(index + turn) % len(STORED)]
            attention = "eager" if case.eager_only or (index + turn) % 2 else "sdpa"
            runs.append(pytest.param(case, insertion, stored, attention, id=f"{case}-{turn}"))
    return runs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    return small_recipe(folder, {"reward": REWARD}, steps=1, batch_size=4, save_every=1)


def test_every_insertion_and_every_way_of_storing_comes_up() -> None:
    values = [run.values for run in _runs()]
    assert all(any(v[1] == one for v in values) for one in INSERTIONS)
    assert all(any(v[2] == one for v in values) for one in STORED)
    pairs = {(INSERTIONS.index(v[1]), STORED.index(v[2])) for v in values}
    assert len(pairs) > len(INSERTIONS) * len(STORED) // 2
    assert {v[0].family for v in values} == {case.family for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "insertion", "stored", "attention"), _runs())
def test_a_base_that_is_grafted_generates_trains_and_is_verified(
    tiny_checkpoint: Any,
    tmp_path: Path,
    recipe: Recipe,
    case: Case,
    insertion: dict[str, Any],
    stored: dict[str, Any],
    attention: str,
) -> None:
    form = insertion if case.full else {**insertion, "heads": 0, "kv": "own"}
    base = case.write(tiny_checkpoint, **stored)
    folder = random_graft(base, tmp_path / "graft", signals=("reward",), **form)
    plain = AutoModelForCausalLM.from_pretrained(
        base, attn_implementation=attention, dtype=stored["dtype"]
    ).eval()
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation=attention)
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        theirs = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
        )
        (ours,) = generate(model, [prompt], Sampling(NEW), signals=["reward"])
        assert ours.tokens == theirs[0, len(prompt) :].tolist()
        assert len(ours.signals["reward"]) == len(ours.tokens)
        assert torch.tensor(ours.signals["reward"]).isfinite().all()
    _one_step(folder, recipe)
    grid = Few(dtypes=(stored["dtype"],), attentions=(attention,))
    report = verify(VerificationRequest(folder, base=base, grid=grid))
    verdict = decide(report)
    assert verdict.passes("grid") and report.results, verdict


def _one_step(folder: Path, recipe: Recipe) -> None:
    before = OtterForCausalLM.from_pretrained(folder).inserted_state_dict()
    train(folder, recipe)
    after = OtterForCausalLM.from_pretrained(folder).inserted_state_dict()
    assert Manifest.read(folder).training["reward"].steps == 1
    assert any(not torch.equal(before[name], after[name]) for name in before)
