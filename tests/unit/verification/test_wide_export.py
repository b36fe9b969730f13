"""Wide exports: block by block on disk, and `close` in the logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.serving.wide.export import write_wide
from otter_cli.verification.agenda import VerificationRequest
from otter_cli.verification.grid import Grid
from otter_cli.verification.report import decide
from otter_cli.verification.run_verification import verify
from otter_cli.verification.static import check_foreign_checkpoint
from tests.support.grafts import random_graft

HEAD, OUT, NORM = "lm_head.weight", "model.layers.1.self_attn.o_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def export(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    graft = random_graft(tiny_llama, folder / "graft", hidden=8, heads=2, ffn=16)
    write_wide(graft, folder / "wide")
    return folder / "wide"


def changed(export: Path, to: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    shutil.copytree(export, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("mistral", False), ("qwen2", True)])
@pytest.mark.parametrize("kv", ["own", "base"])
def test_every_block_is_where_it_belongs(
    tiny_checkpoint: Any, tmp_path: Path, family: str, tied: bool, kv: str
) -> None:
    base = tiny_checkpoint(family, tied=tied, dtype="bfloat16")
    graft = random_graft(base, tmp_path / "graft", hidden=8, heads=4, ffn=16, kv=kv)
    write_wide(graft, tmp_path / "wide")
    found = check_foreign_checkpoint(tmp_path / "wide", base)
    assert found.holds, found.findings
    assert "zero" in found.notes[0]


def corner(value: float, row: int, column: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors[OUT][row, column].fill_(value)


@pytest.mark.parametrize("value", [1e-45, -0.0, 1.0])
def test_a_zero_block_that_is_not_zero_by_its_bits(
    export: Path, tiny_llama: Path, tmp_path: Path, value: float
) -> None:
    other = changed(export, tmp_path / "other", corner(value, 3, -1))
    (finding,) = check_foreign_checkpoint(other, tiny_llama).findings
    assert finding.tensor == OUT and "zero block is not zero in row 3" in finding.what


def test_the_inserted_rows_may_hold_anything(
    export: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    assert check_foreign_checkpoint(
        changed(export, tmp_path / "a", corner(7, -1, -1)), tiny_llama
    ).holds
    rows = lambda tensors: tensors["model.embed_tokens.weight"][:, 32:].add_(1)  # noqa: E731
    assert check_foreign_checkpoint(changed(export, tmp_path / "b", rows), tiny_llama).holds


def test_the_base_s_own_block(export: Path, tiny_llama: Path, tmp_path: Path) -> None:
    other = changed(export, tmp_path / "a", corner(7, 1, 2))
    (finding,) = check_foreign_checkpoint(other, tiny_llama).findings
    assert finding.what == "differs from the base's at element 34"
    other = changed(export, tmp_path / "b", lambda tensors: tensors[NORM][4].add_(1))
    (finding,) = check_foreign_checkpoint(other, tiny_llama).findings
    assert (finding.tensor, finding.what) == (NORM, "differs from the base's at element 4")


def test_after_a_change_of_dtype_zeros_are_zeros_and_the_dtype_is_told(
    export: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    def cast(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    findings = check_foreign_checkpoint(
        changed(export, tmp_path / "cast", cast), tiny_llama
    ).findings
    assert {finding.what for finding in findings} == {"is BF16, the base's F32"}


def test_training_all_of_it_fills_the_zero_blocks(
    export: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Training a whole wide matrix makes its zero block non-zero, and the base reads the
    insertion."""
    from otter_cli.model.wide import load_wide

    model = load_wide(export)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    tokens = torch.arange(3, 43).view(2, 20)
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    optimiser.step()
    trained = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    other = changed(export, tmp_path / "trained", lambda tensors: tensors.update(trained))
    told = [
        f.tensor
        for f in check_foreign_checkpoint(other, tiny_llama).findings
        if "zero block" in f.what
    ]
    assert OUT in told and HEAD in told


def test_what_is_lost_or_too_narrow(export: Path, tiny_llama: Path, tmp_path: Path) -> None:
    other = changed(export, tmp_path / "a", lambda tensors: tensors.pop(OUT))
    assert [f.what for f in check_foreign_checkpoint(other, tiny_llama).findings] == ["is missing"]

    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors[OUT] = tensors[OUT][:20].clone()

    (finding,) = check_foreign_checkpoint(
        changed(export, tmp_path / "b", narrow), tiny_llama
    ).findings
    assert "cannot hold the base's [32, 32]" in finding.what


def test_the_verdict_is_close_with_what_moved(export: Path, tiny_llama: Path) -> None:
    found = verify(VerificationRequest(export, tiny_llama, Grid(attentions=("sdpa",))))
    verdict = decide(found)
    assert verdict.name == "close", verdict.sentence
    assert verdict.passes("close") and not verdict.passes("grid")
    moved = [result.difference for result in found.results if not result.equal]
    assert moved and all(sum(d.histogram.values()) == d.changed > 0 for d in moved)
    assert found.first_difference is not None and found.control == len(found.results)


def test_foreign_code_is_not_run(export: Path, tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "other")
    with (tmp_path / "other" / "modeling_otter_wide.py").open("a") as file:
        file.write("raise SystemExit\n")
    with pytest.raises(OtterError, match="engines would run it"):
        verify(VerificationRequest(tmp_path / "other", tiny_llama))


def test_of_texts_that_part_only_the_steps_up_to_there_are_compared() -> None:
    from otter_cli.verification.case_runner import CaseOutputs
    from otter_cli.verification.compare import _comparable
    from otter_cli.verification.grid import Case

    case = Case("greedy", 2, steps=3)
    base = CaseOutputs(torch.zeros(1, 3, 5), torch.tensor([[1, 2, 3, 4, 5]]))
    other = CaseOutputs(torch.ones(1, 3, 5), torch.tensor([[1, 2, 3, 9, 9]]))
    # The second new token differs, so steps 0 and 1 follow the same tokens.
    assert [len(part[0]) for part in _comparable(case, base, other)] == [2, 2]
    assert [len(part[0]) for part in _comparable(case, base, base)] == [3, 3]
    beam = Case("beam", 2, steps=3)
    assert [len(part[0]) for part in _comparable(beam, base, other)] == [1, 1]
