"""No verb runs code that a folder brings: not for a "y" on stdin, not for what a file says. Consent
is an option of this run, --trust-remote-code of verify."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.digests import sha256_json
from tests.conftest import Otter
from tests.support.benchmark_models import write_classifier, write_reward_model
from tests.support.foreign_code import plant
from tests.support.grafts import random_graft
from tests.support.training import write_data, write_recipe

SIZES = {"hidden": 8, "heads": 2, "ffn": 8, "signals": ("reward",)}


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever asks on stdin is told "y"."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "the code was run"


@pytest.fixture(params=["model", "tokenizer"])
def base(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path, canary: Path) -> Path:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    return plant(folder, canary, request.param)


@pytest.fixture
def grafted(base: Path, tmp_path: Path) -> Path:
    return random_graft(base, tmp_path / "grafted", **SIZES)


@pytest.mark.parametrize("base", ["model", "tokenizer"], indirect=True)
def test_transformers_alone_would_run_it(base: Path, canary: Path) -> None:
    """Else the tests below would show nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load() -> object:
        if "auto_map" in json.loads((base / "config.json").read_text()):
            return AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
        return AutoTokenizer.from_pretrained(base)  # asks, and is told "y"

    with pytest.raises(AttributeError, match="Evil"):
        load()
    assert canary.exists()


def test_custom_generate_would_be_run_too(tiny_llama: Path, tmp_path: Path, canary: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = plant(Path(shutil.copytree(tiny_llama, tmp_path / "b")), canary, "tokenizer")
    with pytest.raises(AttributeError, match="generate"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert canary.exists()


VERBS: dict[str, list[list[str]]] = {
    "inspect": [["inspect", "grafted"], ["inspect", "base"]],
    "doctor": [["doctor", "grafted"], ["doctor", "base"]],
    "graft": [["graft", "base", "out"]],
    "strip": [["strip", "grafted", "out"]],
    "generate": [["generate", "grafted", "abc", "--max-new-tokens", "2"]],
    "chat": [["chat", "grafted", "--max-new-tokens", "2"]],
    "export, adapter, and attach": [
        ["export", "grafted", "out", "--to", "adapter"],
        ["attach", "out", "base", "again"],
        ["generate", "again", "abc", "--max-new-tokens", "2"],
    ],
    "export, base": [["export", "grafted", "out", "--to", "base"]],
    "export, wide": [["export", "grafted", "out", "--to", "wide"]],
    "export, vllm": [["export", "grafted", "out", "--to", "vllm"]],
    "compose": [["compose", "grafted", "other", "out"]],
    "verify": [["verify", "grafted", "--static"]],
    "train": [["train", "grafted", "--recipe", "recipe.yaml", "--set", "steps=1"]],
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_it(
    otter_here: Otter, base: Path, grafted: Path, tmp_path: Path, canary: Path, verb: str
) -> None:
    random_graft(base, tmp_path / "other", **{**SIZES, "signals": ("risk=value",)})
    write_data(tmp_path, rows=16)
    write_recipe(tmp_path, steps=1, batch_size=4, save_every=1)
    of_tokenizer = "auto_map" in json.loads((grafted / "tokenizer_config.json").read_text())
    for arguments in VERBS[verb]:
        done = otter_here(*arguments)
        # A tokenizer of no class of transformers cannot be used; all else goes on.
        assert done.returncode == 0 or (of_tokenizer and done.returncode == 2), done.stderr
        if done.returncode == 2:
            assert "the folder brings" in done.stderr, done.stderr
    assert not canary.exists()


@pytest.mark.parametrize("base", ["model"], indirect=True)
def test_verify_of_any_folder_runs_it_for_its_own_option_alone(
    otter_here: Otter, base: Path, tiny_llama: Path, tmp_path: Path, canary: Path
) -> None:
    """A proof may come from anybody: what it says of trust is not consent."""
    arguments = ("verify", base, "--base", tiny_llama, "--dtype", "float32")
    done = otter_here(*arguments, "--static", "--proof", tmp_path / "proof.json")
    assert not canary.exists(), done.stderr
    proof = json.loads((tmp_path / "proof.json").read_text())
    del proof["sha256"]
    proof["request"] |= {"trust": True, "static_only": False}
    proof["sha256"] = sha256_json(proof)
    (tmp_path / "proof.json").write_text(json.dumps(proof))
    done = otter_here("verify", "--check", tmp_path / "proof.json")
    assert done.returncode in (0, 1) and not canary.exists(), done.stderr
    again = otter_here("verify", "--check", tmp_path / "proof.json", "--trust-remote-code")
    assert again.returncode != 0 and canary.exists()


@pytest.mark.parametrize("base", ["model"], indirect=True)
def test_a_folder_of_a_class_of_its_own_is_refused_with_the_option_that_runs_it(
    otter_here: Otter, base: Path, tiny_llama: Path, canary: Path
) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    done = otter_here("verify", base, "--base", tiny_llama, "--dtype", "float32")
    assert done.returncode == 2 and "--trust-remote-code" in done.stderr
    assert not canary.exists()


@pytest.mark.parametrize("base", ["model", "tokenizer"], indirect=True)
def test_benchmarks_do_not_run_it(
    otter_here: Otter, base: Path, grafted: Path, tiny_llama: Path, tmp_path: Path, canary: Path
) -> None:
    """Neither of the graft, nor of its judges."""
    head = random_graft(base, tmp_path / "head", hidden=0, signals=("reward",))
    where = "model" if "auto_map" in json.loads((base / "config.json").read_text()) else "tokenizer"
    judges = [
        plant(write_reward_model(tiny_llama, tmp_path / name, seed=1 + i), canary, where)
        for i, name in enumerate(("reward-model", "gold"))
    ]
    (tmp_path / "prompts.txt").write_text("Once upon a time\n")
    done = otter_here(
        "bench", "preference", grafted, "--prompts", "prompts.txt", "--task-head", head,
        "--reward-model", judges[0], "--gold", judges[1], "--candidates", 2,
        "--max-new-tokens", 2, "--out", "run",
    )  # fmt: skip
    assert done.returncode == (0 if where == "model" else 2), done.stderr
    assert not canary.exists()


@pytest.mark.parametrize("base", ["model", "tokenizer"], indirect=True)
def test_a_wide_export_holds_none_of_the_bases_code(
    otter_here: Otter, grafted: Path, base: Path
) -> None:
    """Who loads it agrees to run otter's modelling file, and gets that alone."""
    from otter_cli.model.wide import MODELLING_FILE, modelling_file

    done = otter_here("export", grafted, "out", "--to", "wide")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in Path("out").rglob("*.py")] == [MODELLING_FILE]
    assert Path("out", MODELLING_FILE).read_bytes() == modelling_file("llama")
    settings = json.loads(Path("out/tokenizer_config.json").read_text())
    assert "auto_map" not in settings
    # The base's own files are as they were, and leave with the base.
    assert (grafted / "evil.py").read_bytes() == (base / "evil.py").read_bytes()
    otter_here("strip", grafted, "base-again")
    assert Path("base-again/custom_generate/generate.py").exists()


class Pickled:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("allowed", [False, True])
def test_train_unpickles_code_for_its_own_option_alone(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path, canary: Path, allowed: bool
) -> None:
    labeller = write_classifier(tmp_path / "detoxify")
    (checkpoint,) = labeller.glob("*.ckpt")
    loaded = torch.load(checkpoint, weights_only=True)
    torch.save({**loaded, "extra": Pickled(canary)}, checkpoint)
    section = {
        "objective": "rollouts", "labeller": str(labeller), "states": 1, "samples": 2, "tokens": 2,
        "train": {"path": "labelled.jsonl"}, "held_out": 0.3, "eos": False,
    }  # fmt: skip
    write_data(tmp_path, rows=12)
    write_recipe(tmp_path, {"risk": section}, steps=1, batch_size=4, save_every=1)
    random_graft(tiny_llama, tmp_path / "grafted", **{**SIZES, "signals": ("risk=value",)})
    options = ["--allow-pickle"] if allowed else []
    done = otter_here("train", "grafted", "--recipe", "recipe.yaml", *options)
    assert canary.exists() == allowed
    if allowed:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 2 and "--allow-pickle" in done.stderr, done.stderr


@pytest.mark.parametrize("verb", ["train", "bench detox", "bench rescore", "bench matrix"])
def test_verbs_that_take_a_judge_have_the_option(otter_here: Otter, verb: str) -> None:
    done = otter_here(*verb.split(), "--help")
    assert done.returncode == 0 and "--allow-pickle" in done.stdout


@pytest.mark.parametrize("verb", ["graft", "doctor"])
def test_a_tokenizer_with_code_of_its_own_is_warned_of_before_it_is_refused(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path, canary: Path, verb: str
) -> None:
    """graft and doctor accept what generate refuses, so they have to say it."""
    base = plant(shutil.copytree(tiny_llama, tmp_path / "named"), canary, "tokenizer")
    done = (
        otter_here("graft", base, tmp_path / "out") if verb == "graft" else otter_here(verb, base)
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0 and "auto_map names code in the folder" in said, said
    assert not canary.exists()
    sound = otter_here("doctor", tiny_llama)
    assert "auto_map" not in sound.stdout + sound.stderr
