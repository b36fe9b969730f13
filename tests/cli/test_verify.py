"""`otter verify` as a user runs it: verdicts, exit codes, JSON, proofs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Otter
from tests.support.grafts import random_graft
from tests.support.planted_faults import flip_bit

QUICK = ("--dtype", "float32")


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "graft"
    return random_graft(tiny_llama, folder, hidden=8, heads=1, ffn=16, signals=("reward",))


@pytest.fixture(scope="module")
def proven(
    otter: Otter, graft: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    here = tmp_path_factory.mktemp("proof")
    ran = otter("verify", graft, "--base", tiny_llama, *QUICK, "--json", cwd=here)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), here / "proof.json"


def test_a_graft_is_exact_by_construction(proven: tuple[dict[str, Any], Path]) -> None:
    out, path = proven
    assert out["verdict"] == "exact by construction"
    assert out["cases"] == out["equal"] == out["control"] == out["poison"] > 20
    assert out["static"]["holds"] and not out["bisect"]
    assert {trace["leak"] for trace in out["structure"]} == {None}
    assert out["proof"] == "proof.json"
    stored = json.loads(path.read_text())
    assert stored == {name: out[name] for name in stored if name != "proof"}


def test_the_table_and_the_sentence(otter: Otter, graft: Path, tmp_path: Path) -> None:
    ran = otter("verify", graft, *QUICK, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    words = " ".join(ran.stdout.split())
    for part in ("decode, left padding 2/2 2/2 2/2 0 0", "float32, sdpa", "exact by construction"):
        assert part in words
    assert "whatever the inserted tensors hold" in words and "proof: proof.json" in words
    assert max(map(len, ran.stdout.splitlines())) <= 100


def test_one_bit_of_a_base_tensor(
    otter: Otter, graft: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(graft, changed)
    flip_bit(changed / "model.safetensors", "model.layers.1.mlp.down_proj.weight")
    ran = otter("verify", changed, "--base", tiny_llama, *QUICK, "--json", cwd=tmp_path)
    out = json.loads(ran.stdout)
    assert ran.returncode == 1 and out["verdict"] == "different"
    found = out["static"]["findings"]
    assert "model.layers.1.mlp.down_proj.weight" in [finding["tensor"] for finding in found]
    assert {Path(finding["file"]).name for finding in found} == {"model.safetensors"}
    assert out["bisect"]["module"] == "model.layers.1.mlp.down_proj"

    shown = otter("verify", changed, "--base", tiny_llama, "--static", cwd=tmp_path)
    assert shown.returncode == 1
    assert "model.layers.1.mlp.down_proj.weight" in " ".join(shown.stdout.split())


def test_an_inserted_tensor_file_that_is_gone(
    otter: Otter, graft: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(graft, broken)
    (broken / "otter.safetensors").unlink()
    ran = otter("verify", broken, "--base", tiny_llama, "--json", cwd=tmp_path)
    out = json.loads(ran.stdout)
    assert ran.returncode == 1 and out["verdict"] == "different" and out["cases"] == 0
    assert "otter.safetensors is missing" in out["sentence"] and out["unrun"]


def test_static_imports_no_torch_and_claims_no_logits(
    otter: Otter, graft: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    ran = otter(
        "verify", graft, "--base", tiny_llama, "--static", "--json", "--proof", tmp_path / "p.json",
        cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )  # fmt: skip
    out = json.loads(ran.stdout)
    assert ran.returncode == 0 and out["verdict"] == "identical on disk" and out["cases"] == 0
    assert (tmp_path / "p.json").exists()


def test_a_proof_holds_when_it_is_run_again(
    otter: Otter, proven: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    ran = otter("verify", "--check", proven[1], "--json", cwd=tmp_path)
    out = json.loads(ran.stdout)
    assert ran.returncode == 0 and out["check"]["differences"] == []
    assert out["check"]["same_outputs"] == out["cases"]
    assert not (tmp_path / "proof.json").exists()


def test_a_proof_of_other_files_does_not_hold(
    otter: Otter, proven: tuple[dict[str, Any], Path], graft: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(graft, other)
    path = other / "generation_config.json"
    path.unlink()
    path.write_text("{}")
    ran = otter("verify", other, "--check", proven[1], cwd=tmp_path)
    assert ran.returncode == 1
    assert "generation_config.json of the folder is not the file that was verified" in ran.stdout


def test_a_forged_proof_is_refused(
    otter: Otter, proven: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    forged = tmp_path / "proof.json"
    forged.write_text(proven[1].read_text().replace('"equal": ', '"equal": 1', 1))
    ran = otter("verify", "--check", forged, cwd=tmp_path)
    assert ran.returncode == 1 and "its digest differs" in ran.stderr


def test_somebody_else_s_folder_gets_an_honest_answer(
    otter: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    arguments = ("--base", tiny_llama, *QUICK, "--json")
    shutil.copytree(tiny_llama, tmp_path / "copy")
    ran = otter("verify", tmp_path / "copy", *arguments, cwd=tmp_path)
    out = json.loads(ran.stdout)
    assert ran.returncode == 0 and out["verdict"] == "exact on grid" and out["untraced"]
    strict = otter(
        "verify", tmp_path / "copy", "--check", "proof.json", "--strict", "construction",
        cwd=tmp_path,
    )  # fmt: skip
    assert strict.returncode == 1

    flip_bit(tmp_path / "copy" / "model.safetensors", "model.norm.weight")
    ran = otter("verify", tmp_path / "copy", *arguments, cwd=tmp_path)
    out = json.loads(ran.stdout)
    assert ran.returncode == 1 and out["verdict"] == "different"
    assert out["static"]["findings"][0]["tensor"] == "model.norm.weight"
    assert out["bisect"]["module"] == "model.norm" and out["bisect"]["position"] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "nothing to verify"),
        (("absent",), "absent"),
        (("base",), "its base is not known"),
        (("base", "--base", "absent"), "absent does not exist"),
        (("base", "--base", "base", "--dtype", "float8"), "float8"),
        (("base", "--base", "base", "--device", "abacus"), "abacus"),
        (("base", "--base", "base", "--grid", "huge"), "huge"),
        (("base", "--base", "base", "--proof", "no/where/proof.json"), "no/where/proof.json"),
        (("--check", "absent.json"), "absent.json"),
    ],
)
def test_bad_usage_exits_2(
    otter: Otter, tiny_llama: Path, tmp_path: Path, arguments: tuple[str, ...], what: str
) -> None:
    (tmp_path / "base").symlink_to(tiny_llama)
    ran = otter("verify", *arguments, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert what in ran.stderr and "hint:" in ran.stderr and "Traceback" not in ran.stderr
