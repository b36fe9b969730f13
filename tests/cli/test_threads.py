"""Threads of every verb that runs models: decided before torch is loaded, by the user first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from otter_cli.cli.verbs import VERBS
from tests.conftest import Otter
from tests.support.grafts import random_graft

# Verbs that run no model: they read and write files, or only ask about the machine.
WITHOUT_MODELS = {
    "import", "inspect", "graft", "attach", "strip", "compose", "export", "data", "models",
    "recipes", "doctor", "explain",
}  # fmt: skip
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def environment(**own: str) -> dict[str, str]:
    """This process's environment without what decides threads, and with `own`."""
    return {**{k: v for k, v in os.environ.items() if k not in NAMES}, **own}


def commands(app: object) -> list[object]:
    from typer.main import get_command

    command = get_command(app)  # type: ignore[arg-type]
    return list(getattr(command, "commands", {"": command}).values())


@pytest.mark.parametrize("name", sorted(set(VERBS) - WITHOUT_MODELS))
def test_every_verb_that_runs_models_takes_threads(name: str) -> None:
    from importlib import import_module

    reading_only = {"report", "compare", "check"}  # of `bench`: they read stored results
    for command in commands(import_module(VERBS[name].module).app):
        names = {option for p in command.params for option in p.opts}  # type: ignore[attr-defined]
        assert ("--threads" in names) == (command.name not in reading_only), command.name  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads") / "graft"
    return random_graft(tiny_llama, folder, hidden=8, heads=1, ffn=16, signals=("reward",))


_REPORT = """
import json, os, sys
from otter_cli.cli.main import main
code = main(sys.argv[1:])
import torch
names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
state = {name: os.environ.get(name) for name in names} | {"threads": torch.get_num_threads()}
print("\\n" + json.dumps(state))
raise SystemExit(code)
"""


def threads_of(graft: Path, *options: str, **own: str) -> dict[str, object]:
    command = [sys.executable, "-c", _REPORT, "generate", str(graft), "ab", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**own))
    assert done.returncode == 0, done.stderr
    state: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return state


@pytest.mark.parametrize(
    ("options", "own", "threads", "waiting"),
    [
        (("--threads", "1"), {"OMP_NUM_THREADS": "2"}, 1, None),
        ((), {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "ACTIVE"}, 1, "ACTIVE"),
    ],
)
def test_what_the_user_sets_decides(
    graft: Path, options: tuple[str, ...], own: dict[str, str], threads: int, waiting: str | None
) -> None:
    state = threads_of(graft, *options, **own)
    assert state["threads"] == threads == int(str(state["OMP_NUM_THREADS"]))
    assert state["OMP_WAIT_POLICY"] == waiting


def test_waiting_threads_soon_sleep(otter: Otter, graft: Path) -> None:
    """OpenMP itself says how long its threads spin, as torch loads it."""
    ran = otter("generate", graft, "ab", "--max-new-tokens", 1, env={"OMP_DISPLAY_ENV": "VERBOSE"})
    spins = [line for line in ran.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not spins and "OMP_WAIT_POLICY" not in ran.stderr:
        pytest.skip("torch has an OpenMP that does not say so")
    assert all("'2000'" in line for line in spins), spins


def test_doctor_shows_the_threads_and_why(otter: Otter) -> None:
    data = json.loads(otter("doctor", "--json", env={"OMP_NUM_THREADS": "1"}).stdout)
    threads = data["hardware"]["threads"]
    assert threads["threads"] == 1 and threads["why"] == "OMP_NUM_THREADS"
    assert threads["waiting"] == "sleep" or os.environ.get(threads["waiting"])
