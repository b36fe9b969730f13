"""Positions chosen beforehand: what is read there, and what the base's last layer leaves out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.model.activations import SelectedPositions
from otter_cli.model.capture import SelectiveForward
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, Case
from tests.support.grafts import random_graft

TEXTS, TOKENS = 4, 12
AT = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([11, 4, 0, 7, 10])


def _model(case: Case, tiny_checkpoint: Any, out: Path, **form: Any) -> OtterForCausalLM:
    return case.graft(tiny_checkpoint, random_graft, out, **form)


def _tokens() -> Tensor:
    return torch.randint(3, 23, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))


def _gradients(model: OtterForCausalLM, reward: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*model.inserted_parameters(), strict=True)
    found = torch.autograd.grad((reward**2).sum(), parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("norm", ["own", "base"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_states_signals_and_gradients_are_those_of_a_whole_run(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, norm: str
) -> None:
    model = _model(case, tiny_checkpoint, tmp_path / "g", norm=norm)
    whole = model(_tokens(), logits=False)
    out = model(_tokens(), logits=False, at=AT)
    # Attention functions take their softmax in float32, some rotations too.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out.base_state, whole.base_state[AT], **close)
    torch.testing.assert_close(
        out.inserted_state["main"], whole.inserted_state["main"][AT], **close
    )
    torch.testing.assert_close(out.signals["reward"], whole.signals["reward"][AT], **close)
    expected = _gradients(model, whole.signals["reward"][AT])
    for name, found in _gradients(model, out.signals["reward"]).items():
        if expected[name] is None:
            assert found is None, name
        else:
            torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def _rows(*modules: torch.nn.Module) -> list[list[int]]:
    """Of each of the modules, how many rows its own forward is given, call by call, as they run."""
    seen: list[list[int]] = [[] for _ in modules]
    for module, rows in zip(modules, seen, strict=True):
        outer = module.__dict__.get("forward")
        holder = outer if isinstance(outer, SelectiveForward) else module

        def counted(
            hidden: Tensor, *more: Any, rows: Any = rows, inner: Any = holder.forward
        ) -> Any:
            rows.append(hidden.shape[:-1].numel())
            return inner(hidden, *more)

        holder.forward = counted  # type: ignore[method-assign, assignment]
    return seen


FORMS: tuple[dict[str, Any], ...] = ({}, {"layers": (0,)}, {"hidden": 0, "heads": 0, "ffn": 0})


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_after_the_last_layer_s_heads_runs_at_the_chosen_positions_alone(
    tiny_checkpoint: Any, tmp_path: Path, form: dict[str, Any]
) -> None:
    """Also where nothing is inserted into that layer."""
    model = _llama(tiny_checkpoint, tmp_path, **form)
    whole = model(_tokens(), logits=False).signals["reward"][AT]
    first, *_, last = model.capture.layers
    outs = [layer.self_attn.o_proj for layer in (first, last)]
    seen = _rows(*outs, *(layer.mlp.down_proj for layer in (first, last)))
    found = model(_tokens(), logits=False, at=AT).signals["reward"]
    few, many = [len(AT[0])], [TEXTS * TOKENS]
    assert seen == [many, few, many, few]
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("name", ["opt", "gpt2", "mixtral"])
def test_so_it_is_where_the_ffn_is_built_otherwise(
    tiny_checkpoint: Any, tmp_path: Path, name: str
) -> None:
    case = next(case for case in CASES if str(case).startswith(name))
    model = _model(case, tiny_checkpoint, tmp_path / "g")
    ffn = model.shape.family.ffn
    end = ffn.last_linear if ffn.read_at == "input" else ffn.module
    (rows,) = _rows(model.capture.layers[-1].get_submodule(end))
    model(_tokens(), logits=False, at=AT)
    assert rows == [len(AT[0])]


@pytest.mark.parametrize("way", ["logits", "no graph", "most positions"])
def test_elsewhere_the_base_runs_as_ever(tiny_checkpoint: Any, tmp_path: Path, way: str) -> None:
    """Logits have stock's bits, and so have states that are read without a graph."""
    model, at = _llama(tiny_checkpoint, tmp_path), AT
    if way == "most positions":
        at = tuple(torch.ones(TEXTS, TOKENS).nonzero().T[:, 10:])
    with torch.set_grad_enabled(way != "no graph"):
        whole = model(_tokens(), logits=way == "logits")
        last = model.capture.layers[-1]
        seen = _rows(last.self_attn.o_proj, last.mlp.up_proj)
        out = model(_tokens(), logits=way == "logits", at=at)
    assert seen == [[TEXTS * TOKENS]] * 2
    assert torch.equal(out.base_state, whole.base_state[at])
    assert torch.equal(out.inserted_state["main"], whole.inserted_state["main"][at])
    torch.testing.assert_close(out.signals["reward"], whole.signals["reward"][at])
    if way == "logits":
        assert torch.equal(out.logits, whole.logits)


def test_positions_are_counted_as_an_index_counts_them(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    model = _llama(tiny_checkpoint, tmp_path)
    texts = torch.arange(TEXTS)
    last, from_the_end = (model(_tokens(), logits=False, at=(texts, torch.full((TEXTS,), column)))
                          for column in (TOKENS - 1, -1))  # fmt: skip
    assert torch.equal(last.base_state, from_the_end.base_state)
    with pytest.raises(IndexError):
        model(_tokens(), logits=False, at=(texts, torch.full((TEXTS,), TOKENS)))


def test_two_grafts_of_one_base_choose_for_themselves(tiny_checkpoint: Any, tmp_path: Path) -> None:
    base = tiny_checkpoint("llama")
    first, second = (
        random_graft(base, tmp_path / name, signals=("reward",), hidden=8, heads=2, ffn=16, seed=i)
        for i, name in enumerate(("a", "b"))
    )
    one = OtterForCausalLM.from_pretrained(first)
    other = one.beside(second)
    for model in (one, other):
        whole = model(_tokens(), logits=False).signals["reward"][AT]
        found = model(_tokens(), logits=False, at=AT).signals["reward"]
        torch.testing.assert_close(found, whole)


def test_rows_of_the_chosen_alone_are_left_as_they_are() -> None:
    chosen, whole = SelectedPositions(AT, TEXTS, TOKENS), torch.randn(TEXTS, TOKENS, 3)
    rows = chosen.select(whole)
    assert torch.equal(rows, whole[AT]) and chosen.select(rows) is rows
    spread = chosen.scatter(rows[None], whole)
    assert torch.equal(spread[AT], rows)
    assert spread.count_nonzero() == rows.numel()


def _llama(tiny_checkpoint: Any, tmp_path: Path, **form: Any) -> OtterForCausalLM:
    form = {"hidden": 8, "heads": 2, "ffn": 16, **form}
    folder = random_graft(tiny_checkpoint("llama"), tmp_path / "g", signals=("reward",), **form)
    return OtterForCausalLM.from_pretrained(folder)
