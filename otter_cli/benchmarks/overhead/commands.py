"""Commands as a user gives them, timed whole: surgery beside cp and sha256sum, start-up beside the
bare import of what the command line is made of."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.clock import interleaved
from otter_cli.benchmarks.overhead.result import Group, lines_of
from otter_cli.benchmarks.overhead.shapes import configuration
from otter_cli.core.errors import OtterError

OTTER = (sys.executable, "-m", "otter_cli")
HASH, BARE = "sha256sum", "import typer, rich"
_SURGERY_ROUNDS, _START_ROUNDS = 5, 15


def surgery(bench: Bench) -> list[Group]:
    """graft, verify --static and strip of the base's files on disk, beside cp and sha256sum."""
    for tool in ("cp", "sha256sum"):
        if shutil.which(tool) is None:
            raise OtterError(f"there is no {tool} here to compare with", hint="leave --surgery out")
    with tempfile.TemporaryDirectory() as place:
        root, numbers = Path(place), count()
        base, grafted = root / "base", root / "grafted"
        bench.subject.stock.save_pretrained(base)
        files = sorted(str(path) for path in base.iterdir())
        _run(*OTTER, "graft", str(base), str(grafted), "--quiet")

        def new() -> str:
            return str(root / f"out-{next(numbers)}")

        def otter(*arguments: str) -> None:
            # Digests that an earlier round remembered would save this one its work.
            _run(*OTTER, *arguments, "--quiet", XDG_CACHE_HOME=new())

        steps: dict[str, Callable[[], None]] = {
            HASH: lambda: _run("sha256sum", *files),
            "cp -r": lambda: _run("cp", "-r", str(base), new()),
            "otter graft": lambda: otter("graft", str(base), new()),
            "otter graft --copy": lambda: otter("graft", str(base), new(), "--copy"),
            "otter verify --static": lambda: otter(
                "verify", str(grafted), "--static", "--proof", new()
            ),
            "otter strip": lambda: otter("strip", str(grafted), new()),
        }
        times = interleaved(
            steps, min(_SURGERY_ROUNDS, bench.rounds), synchronise=_nothing, warm_up=1
        )
        stored = sum(path.stat().st_size for path in base.iterdir())
    figures = {HASH: {"base, bytes": float(stored)}}
    notes = ["Whole commands, start-up and the digest of every file of the base included."]
    lines = lines_of(times, HASH, figures=figures)
    return [Group(title="Surgery", reference=HASH, per="command", notes=notes, lines=lines)]


def start_up(bench: Bench) -> list[Group]:
    """Whole processes; the 7B base is its headers and a hole: nothing reads the weights."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "llama-7b"
        hollow_checkpoint("llama-7b", base)

        def start(*command: str) -> Callable[[], None]:
            # As installed packages are: their bytecode lies beside them from the first round on.
            return lambda: _run(*command, PYTHONDONTWRITEBYTECODE="")

        steps: dict[str, Callable[[], None]] = {
            BARE: start(sys.executable, "-c", BARE),
            "otter --help": start(*OTTER, "--help"),
            "otter inspect, 7B": start(*OTTER, "inspect", str(base)),
            "otter graft --dry-run, 7B": start(
                *OTTER, "graft", str(base), str(base) + "-out", "--dry-run"
            ),
        }
        times = interleaved(
            steps, min(_START_ROUNDS, bench.rounds), synchronise=_nothing, warm_up=1
        )
    notes = ["Whole processes, the interpreter's own start included."]
    lines = lines_of(times, BARE)
    return [Group(title="Start-up", reference=BARE, per="process", notes=notes, lines=lines)]


def hollow_checkpoint(shape: str, folder: Path, shards: int = 3) -> None:
    """A checkpoint of that shape in bf16: true headers, and holes where the weights would be."""
    import torch
    from transformers import AutoModelForCausalLM

    config = configuration(shape)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=False
        ).state_dict()
    folder.mkdir()
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    names, placed = list(state), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, end = {}, 0
        for name in names[number::shards]:
            size = 2 * state[name].numel()
            offsets = [end, end + size]
            header[name] = {"dtype": "BF16", "shape": list(state[name].shape),
                            "data_offsets": offsets}  # fmt: skip
            placed[name], end = file, end + size
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    total = sum(2 * tensor.numel() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _run(*command: str, **environment: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise OtterError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}",
            hint="run it by itself to see why",
        )


def _nothing() -> None:
    """Processes have ended when they return."""
