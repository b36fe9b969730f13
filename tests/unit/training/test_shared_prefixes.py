"""Pairs that share a beginning share its forward: the loss and the gradients of rows apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.data.datasets import Batch, PairDataset, pad_batch
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import PreferencePair
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.training.objectives.objective import Objective
from otter_cli.training.objectives.pairs import Autoregressive, BradleyTerry
from otter_cli.training.run import train
from otter_cli.training.shared_prefixes import SharedPrefixes
from otter_cli.training.trainable import _GraftReader
from tests.support.families import FULL, Case
from tests.support.grafts import random_graft
from tests.support.training import REWARD, small_graft, small_recipe

# Beginnings of 6, 5 and 3 tokens; one rejected text is the beginning of its chosen one.
CHOSEN = [[1, 5, 6, 7, 8, 9, 30, 31, 32], [1, 5, 7, 9, 11, 12], [1, 40, 41, 42, 2]]
REJECTED = [[1, 5, 6, 7, 8, 9, 20, 2], [1, 5, 7, 9, 11], [1, 40, 41, 50, 51, 52, 53, 54, 2]]
PAIRS = replace(pad_batch(CHOSEN + REJECTED, 0), shared_tokens=torch.tensor([6, 5, 3]))
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
TRAIN = {"train": {"path": "pairs.jsonl"}}


def _grads(
    model: OtterForCausalLM, objective: Objective, name: str, batch: Batch
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    rows: list[int] = []
    embedding = model.base.get_input_embeddings()
    with embedding.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0]))):
        loss = objective.loss(_GraftReader(model, name), batch)
    texts = len(batch.last)
    assert rows == [texts if batch.shared_tokens is None else texts // 2]
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.inserted_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


def _assert_same(model: OtterForCausalLM, objective: Objective, name: str) -> None:
    shared = _grads(model, objective, name, PAIRS)
    apart = _grads(model, objective, name, replace(PAIRS, shared_tokens=None))
    assert shared.keys() == apart.keys() and len(shared) > 10
    for what, value in apart.items():
        # Relative to the largest of each tensor: a sum that cancels has no digits of its own.
        off = (shared[what] - value).abs().max() / value.abs().max().clamp_min(1e-12)
        # Most bases round in their norms to float32, whatever the dtype.
        limit = 1e-6 if value.dtype == torch.float64 else 1e-3
        assert off < limit or value.abs().max() < 1e-3 * limit, (what, off.item())


def _model(
    base: Path,
    out: Path,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> OtterForCausalLM:
    folder = random_graft(base, out, **{"hidden": 8, "heads": 2, "ffn": 16, **options})
    return OtterForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_loss_and_gradients_are_those_of_rows_apart(
    tiny_checkpoint: Any, tmp_path: Path, case: Case
) -> None:
    attention = "eager" if case.eager_only else "sdpa"
    # Products of experts, grouped, are of no wider dtype.
    dtype = torch.float32 if case.family in MIXTURES else torch.float64
    base = case.write(tiny_checkpoint)
    model = _model(base, tmp_path / "g", attention, dtype, signals=("reward",))
    _assert_same(model, BradleyTerry.model_validate(TRAIN), "reward")


@pytest.mark.parametrize(
    ("options", "objective"),
    [
        ({"kv": "base"}, BradleyTerry(positions="every", centring=0.1, **TRAIN)),
        ({"norm": "base"}, BradleyTerry(positions="every", **TRAIN)),
        ({"signals": ("reward=action-reward:4",)}, Autoregressive(**TRAIN)),
    ],
    ids=["kv base, every prefix", "norm base", "action values"],
)
def test_and_so_of_other_streams_and_objectives(
    tiny_llama: Path, tmp_path: Path, options: dict[str, Any], objective: Objective
) -> None:
    model = _model(tiny_llama, tmp_path / "g", **{"signals": ("reward",), **options})
    _assert_same(model, objective, "reward")


def test_every_token_has_its_place(tiny_llama: Path, tmp_path: Path) -> None:
    shared = SharedPrefixes.of(PAIRS, _model(tiny_llama, tmp_path / "g"))
    assert shared is not None
    rows = shared.model_inputs(OtterForCausalLM.from_pretrained(tmp_path / "g"))
    at = PAIRS.attention_mask.nonzero(as_tuple=True)
    there = shared.map_positions(at)
    assert torch.equal(rows["input_ids"][there], PAIRS.input_ids[at])
    assert torch.equal(rows["position_ids"][there], at[1])
    assert shared.tokens == len(set(zip(*(t.tolist() for t in there), strict=True))) == 28
    assert rows["input_ids"].shape == (3, shared.width) == (3, 11)


def test_nothing_is_shared_where_it_saves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    model = _model(tiny_llama, tmp_path / "g")
    for shared in (torch.tensor([0, 0, 0]), None):
        assert SharedPrefixes.of(replace(PAIRS, shared_tokens=shared), model) is None
    model.config._attn_implementation = "flash_attention_2"
    assert SharedPrefixes.of(PAIRS, model) is None


def test_pairs_count_what_they_begin_with(tiny_tokenizer: Any) -> None:
    pairs = [PreferencePair("abcd", "abxy"), PreferencePair("q", "r")]
    encoder = Encoder(tiny_tokenizer, 32)
    first, second = (
        PairDataset(pairs, encoder, share=share).batch([1, 0]) for share in (True, False)
    )
    assert first.shared_tokens is not None and first.shared_tokens.tolist() == [1, 3], (
        "BOS, BOS a b"
    )
    assert second.shared_tokens is None


def test_a_run_says_what_it_was_fed(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"reward": {**REWARD, "held_out": 0.5}}, steps=2)
    start = "a long beginning of both: "
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            f'{{"chosen": "{start}{i} fine", "rejected": "{start}{i} bad"}}\n' for i in range(64)
        )
    )
    losses = []
    for share in (True, False):
        section = recipe.signals["reward"].model_copy(update={"share_prefixes": share})
        folder = small_graft(tiny_llama, tmp_path / f"graft-{share}")
        asked = recipe.model_copy(update={"signals": {"reward": section}, "max_length": 64})
        train(folder, asked)
        steps = [s for s in read_jsonlines(folder / "training/metrics.jsonl") if "loss" in s]
        assert all((step["fed"] < 0.7 * step["tokens"]) == share for step in steps)
        losses += [step["loss"]["reward"] for step in steps]
    assert losses[:2] == pytest.approx(losses[2:], abs=1e-5)
