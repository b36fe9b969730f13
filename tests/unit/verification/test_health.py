"""otter doctor names each fault of a folder. One fault is planted at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from otter_cli.verification.health import check_health
from tests.conftest import Otter
from tests.support.grafts import graft_for

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
Spoil = Callable[[Path], object]


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return spoil


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def values(name: str, *bad: float) -> Spoil:
    return tensors(lambda held: held[name].view(-1)[: len(bad)].copy_(torch.tensor(bad)))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


# Faults in a tied float32 Llama of three layers, with file, tensor and words of the finding.
PROBLEMS: dict[str, tuple[Spoil, str, str | None, str]] = {
    "cut off": (cut, "", None, "truncated"),
    "missing": (
        tensors(lambda held: held.pop(NORM)), "", NORM, "is missing",
    ),
    "shape": (config(vocab_size=98), "model.safetensors", EMBEDDING, "config.json says [98, 32]"),
    "absurd": (config(hidden_size=10**12), "", None, "hidden_size is 1,000,000,000,000"),
    "tied": (
        tensors(lambda held: held.update({"lm_head.weight": held[EMBEDDING] + 1})),
        "model.safetensors", "lm_head.weight", "differs from model.embed_tokens.weight",
    ),
    "untied": (config(tie_word_embeddings=False), "", "lm_head.weight", "is missing"),
    "narrowed": (config(dtype="bfloat16"), "config.json", None, "would round them"),
    "another model's head": (
        tensors(lambda held: held.update({"score.weight": torch.ones(1, 32)})),
        "model.safetensors", "score.weight", "belongs to no module",
    ),
    "stray integers": (
        tensors(lambda held: held.update({"step": torch.ones(3, dtype=torch.int64)})),
        "model.safetensors", "step", "belongs to no module",
    ),
    "padding": (config(pad_token_id=97), "", None, "pad_token_id is 97"),
    "a package": (config(quantization_config={"quant_method": "awq"}), "", None, "gptqmodel"),
    "nan": (
        values("model.layers.1.mlp.up_proj.weight", float("nan"), float("-inf"), float("nan")),
        "model.safetensors", "model.layers.1.mlp.up_proj.weight",
        "holds 2 NaN and 1 infinite of 1,536 values",
    ),
}  # fmt: skip
NOTES: dict[str, tuple[Spoil, str]] = {
    "widened": (config(dtype="float64"), "more memory"),
    "no such end": (config(eos_token_id=[2, 97]), "eos_token_id 97 is no token"),
    "another family": (config(model_type="bert"), "'bert' is not described"),
}


@pytest.fixture
def base(tiny_checkpoint: Any, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint("llama", tied=True), tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_is_wrong_is_named(base: Path, case: str) -> None:
    assert check_health(base).healthy
    spoil, file, tensor, words = PROBLEMS[case]
    spoil(base)
    (problem,) = check_health(base).problems
    assert words in problem.what and problem.tensor == tensor
    assert Path(problem.file) == base / file


def test_layers_that_are_never_read_are_named(base: Path) -> None:
    config(num_hidden_layers=2)(base)
    problems = check_health(base).problems
    assert problems and all("model.layers.2." in (found.tensor or "") for found in problems)


@pytest.mark.parametrize("case", NOTES)
def test_what_is_worth_knowing_is_no_disease(base: Path, case: str) -> None:
    spoil, words = NOTES[case]
    spoil(base)
    health = check_health(base)
    assert health.healthy and words in " ".join(health.notes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_float_type_is_counted(tmp_path: Path, tiny_llama: Path, dtype: str) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    finite = torch.finfo(getattr(torch, dtype))
    odd = [finite.max, finite.min, finite.tiny, -0.0, float("nan"), -float("nan"), float("inf")]
    change = torch.tensor(odd + [-float("inf")] * 25, dtype=getattr(torch, dtype))
    tensors(lambda held: held.update({NORM: change}))(base)
    found = {p.tensor: p.what for p in check_health(base).problems}
    assert found[NORM] == "holds 2 NaN and 26 infinite of 32 values"


def test_a_graft_and_its_adapter(base: Path, tmp_path: Path, otter_here: Otter) -> None:
    graft = graft_for(base, tmp_path / "graft", hidden=8)
    sound = check_health(graft)
    assert sound.healthy and sound.kind == "graft"
    assert sound.digests == len(list(base.iterdir())) + 1
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("otter.json", "otter.safetensors"):
        shutil.copy(graft / name, adapter)
    assert check_health(adapter).healthy and check_health(adapter).kind == "adapter"
    for folder in (graft, adapter):
        path = folder / "otter.safetensors"
        held = load_file(path)
        held["otter.main.norm.weight"][0] = float("nan")
        path.unlink()
        save_file(held, path)
        what = [str(problem) for problem in check_health(folder).problems]
        assert any("otter.json records" in line for line in what), what
        assert any("norm.weight" in line and "1 NaN" in line for line in what), what
        shown = otter_here("doctor", folder)
        assert shown.returncode == 1 and "otter.json records" in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= 100


def test_a_file_of_the_base_that_was_changed(base: Path, tmp_path: Path) -> None:
    graft = graft_for(base, tmp_path / "graft", hidden=8)
    path = graft / "generation_config.json"
    text = path.read_text()
    path.unlink()
    path.write_text(text + " ")
    (problem,) = check_health(graft).problems
    assert problem.file == str(path) and "otter.json records" in problem.what


def test_the_command(base: Path, otter: Otter, tmp_path: Path) -> None:
    assert json.loads(otter("doctor", base, "--json").stdout)["healthy"] is True
    values(NORM, float("nan"))(base)
    sick = otter("doctor", base, "--json")
    assert sick.returncode == 1
    (problem,) = json.loads(sick.stdout)["problems"]
    assert problem["tensor"] == NORM and problem["file"] == str(base / "model.safetensors")
    assert otter("doctor", tmp_path / "nowhere").returncode == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = otter("doctor", empty)
    assert refused.returncode == 2 and "neither config.json nor otter.json" in refused.stderr
