"""Whole commands as a user runs them: surgery beside cp and sha256sum, start-up beside the bare
import of the command line's libraries."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path

from otter_cli.benchmarks.overhead.measured_models import OverheadRun, shape_config
from otter_cli.benchmarks.overhead.measuring import StepFunction, StepTimes, interleaved
from otter_cli.benchmarks.overhead.result import MeasuredGroup, measured_group
from otter_cli.core.errors import OtterError

OTTER = (sys.executable, "-m", "otter_cli")
SHA256SUM, BARE_IMPORT = "sha256sum", "import typer, rich"
_SURGERY_ROUNDS, _START_ROUNDS = 5, 15


def surgery_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """graft, verify --static and strip of the base's files on disk, beside cp and sha256sum."""
    for tool in ("cp", "sha256sum"):
        if shutil.which(tool) is None:
            raise OtterError(f"there is no {tool} here to compare with", hint="leave --surgery out")
    with tempfile.TemporaryDirectory() as folder:
        root, numbers = Path(folder), count()
        base, grafted = root / "base", root / "grafted"
        run.models.stock.save_pretrained(base)
        files = sorted(str(path) for path in base.iterdir())
        _execute(*OTTER, "graft", str(base), str(grafted), "--quiet")

        def new() -> str:
            return str(root / f"out-{next(numbers)}")

        def otter(*arguments: str) -> None:
            # A cache of its own, so that no digest of an earlier round saves this one its work.
            _execute(*OTTER, *arguments, "--quiet", XDG_CACHE_HOME=new())

        steps: dict[str, Callable[[], None]] = {
            SHA256SUM: lambda: _execute("sha256sum", *files),
            "cp -r": lambda: _execute("cp", "-r", str(base), new()),
            "otter graft": lambda: otter("graft", str(base), new()),
            "otter graft --copy": lambda: otter("graft", str(base), new(), "--copy"),
            "otter verify --static": lambda: otter(
                "verify", str(grafted), "--static", "--proof", new()
            ),
            "otter strip": lambda: otter("strip", str(grafted), new()),
        }
        times = _time_in_turns(run, steps, _SURGERY_ROUNDS, "surgery")
        stored = sum(path.stat().st_size for path in base.iterdir())
    return [
        measured_group(
            "Surgery",
            times,
            reference=SHA256SUM,
            per="command",
            notes=["Whole commands, with start-up and the digest of every file of the base."],
            figures={SHA256SUM: {"base, bytes": float(stored)}},
        )
    ]


def start_up_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """Whole processes. No weights are read: the 7B base has headers and holes."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "llama-7b"
        hollow_checkpoint("llama-7b", base)
        graft = ("graft", str(base), f"{base}-out", "--dry-run")
        commands = {
            BARE_IMPORT: (sys.executable, "-c", BARE_IMPORT),
            "otter --help": (*OTTER, "--help"),
            "otter inspect, 7B": (*OTTER, "inspect", str(base)),
            "otter graft --dry-run, 7B": (*OTTER, *graft),
        }
        # The first round writes bytecode, which installed packages have as well.
        steps = {
            name: partial(_execute, *command, PYTHONDONTWRITEBYTECODE="")
            for name, command in commands.items()
        }
        times = _time_in_turns(run, steps, _START_ROUNDS, "start-up")
    notes = ["Whole processes, with the start of the interpreter."]
    return [measured_group("Start-up", times, reference=BARE_IMPORT, per="process", notes=notes)]


def _time_in_turns(
    run: OverheadRun, steps: Mapping[str, StepFunction], most_rounds: int, label: str
) -> StepTimes:
    """Times of commands in turns, after one round of each that is not counted."""
    return interleaved(
        steps,
        min(most_rounds, run.rounds),
        synchronise=lambda: None,
        warm_up=1,
        pace=run.pace,
        label=label,
    )


def hollow_checkpoint(shape: str, folder: Path, shards: int = 3) -> None:
    """A checkpoint of that shape in bf16: valid headers, and holes in place of the weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = shape_config(shape)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=False
        ).state_dict()
    folder.mkdir()
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    names, files = list(state), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, end = {}, 0
        for name in names[number::shards]:
            start, end = end, end + 2 * state[name].numel()
            sizes = list(state[name].shape)
            header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
            files[name] = file
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    total = sum(2 * tensor.numel() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _execute(*command: str, **environment: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise OtterError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}",
            hint="run it by itself to see why",
        )
