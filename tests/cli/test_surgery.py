"""graft, inspect and strip as a user types them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import Otter

SIZES = ("--hidden", "8", "--heads", "2", "--ffn", "16")


def test_graft_inspect_strip(otter: Otter, tiny_llama: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    signals = ("--signal", "reward", "--signal", "toxicity", "--signal", "future:3")
    grafted = json.loads(
        otter("graft", str(tiny_llama), str(out), *SIZES, *signals, "--json").stdout
    )
    assert grafted["family"] == "llama"
    assert (
        0
        < grafted["parameter_ratio"]
        == pytest.approx(grafted["inserted_parameters"] / grafted["base_parameters"])
    )

    before = json.loads(otter("inspect", str(tiny_llama), "--json").stdout)
    after = json.loads(otter("inspect", str(out), "--json").stdout)
    assert before["insertion"] is None and before["signals"] == {}
    assert before["parameters"] == after["parameters"] == grafted["base_parameters"]
    assert (before["family"], before["layers"]) == ("llama", 3)
    assert after["insertion"][0]["hidden"] == 8
    assert set(after["signals"]) == {"reward", "toxicity", "future"}
    assert after["signals"]["future"]["size"] == 3

    assert otter("strip", str(out), str(again)).returncode == 0
    for path in tiny_llama.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in again.iterdir()} == {path.name for path in tiny_llama.iterdir()}


def test_a_dry_run_prices_and_writes_nothing(
    otter: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    priced = json.loads(otter("graft", str(tiny_llama), str(out), "--dry-run", "--json").stdout)
    assert priced["inserted_bytes"] > 0 and priced["inserted_cache_bytes_per_token"] > 0
    assert list(tmp_path.iterdir()) == []
    page = otter("graft", str(tiny_llama), str(out), "--dry-run").stdout
    assert "nothing written" in page and "KV cache" in page


def test_families(otter: Otter) -> None:
    listed = json.loads(otter("inspect", "--families", "--json").stdout)
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(listed["full"])
    assert isinstance(listed["ffn_only"], list) and "bert" in listed["refused"]


def _broken(base: Path, folder: Path, fault: str) -> Path:
    shutil.copytree(base, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "bin":
        weights.rename(folder / "pytorch_model.bin")
    elif fault == "family":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "bert"}))
    elif fault == "shape":
        config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 98}))
    elif fault == "tensor":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights)
    elif fault == "tied":
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True})
        )
    return folder


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncated", "model.safetensors"),
        ("bin", "pytorch_model.bin"),
        ("family", "'bert'"),
        ("shape", "model.embed_tokens.weight"),
        ("tensor", "model.norm.weight is missing"),
        ("tied", "lm_head.weight differs from model.embed_tokens.weight"),
    ],
)
def test_bad_bases_are_refused(
    otter: Otter, tiny_llama: Path, tmp_path: Path, fault: str, words: str
) -> None:
    base = _broken(tiny_llama, tmp_path / "base", fault)
    refused = otter("graft", str(base), str(tmp_path / "out"))
    _is_refusal(refused.returncode, refused.stdout, refused.stderr, words)
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_refused(otter: Otter, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert otter("graft", str(tiny_llama), str(out), *SIZES).returncode == 0
    for arguments, words in (
        (("graft", str(tiny_llama), str(out)), "exists"),
        (("graft", str(tmp_path / "nowhere"), str(tmp_path / "x")), "nowhere"),
        (("graft", str(out), str(tmp_path / "x")), "two signals would be called 'reward'"),
        (("inspect", str(tmp_path)), "config.json"),
        (("strip", str(tiny_llama), str(tmp_path / "x")), "otter.json"),
        (("graft", str(tiny_llama), str(tmp_path / "x"), "--signal", "rewrd"), "rewrd"),
        (("graft", str(tiny_llama), str(tmp_path / "x"), "--hidden", "99"), "--hidden 99"),
        (("graft", str(tiny_llama), str(tmp_path / "x"), "--layers", "2:9"), "layers"),
    ):
        refused = otter(*arguments)
        _is_refusal(refused.returncode, refused.stdout, refused.stderr, words)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"out"}


def _is_refusal(code: int, stdout: str, stderr: str, words: str) -> None:
    error, hint = stderr.strip().splitlines()[-2:]
    assert code == 2 and stdout == ""
    assert error.startswith("error: ") and words in error, stderr
    assert hint.startswith("hint: ") and "Traceback" not in stderr
