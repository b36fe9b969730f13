"""A measurement of overhead from its options to its result."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead.guided_decoding import guided_decoding_groups
from otter_cli.benchmarks.overhead.measured_models import (
    SHAPES,
    SWEEP,
    BaseWithGraft,
    OverheadRun,
    SizedPart,
    from_folder,
    from_shape,
    graft_in_memory,
    plan_of_share,
    random_reward_model,
    shape_config,
)
from otter_cli.benchmarks.overhead.measuring import (
    WARM_UP,
    MachineRates,
    interleaved,
    machine_name,
    measure_rates,
)
from otter_cli.benchmarks.overhead.peers import peer_groups, speculative_groups
from otter_cli.benchmarks.overhead.prefill_decode import (
    PrefillDecodeTimes,
    measure_prefill_decode,
    overhead_row,
)
from otter_cli.benchmarks.overhead.profile import profile_groups
from otter_cli.benchmarks.overhead.result import (
    MeasuredGroup,
    OverheadResult,
    OverheadSettings,
    measured_lines,
)
from otter_cli.benchmarks.overhead.training_steps import training_groups
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance

if TYPE_CHECKING:
    import torch


OTTER = (sys.executable, "-m", "otter_cli")
SHA256SUM, BARE_IMPORT = "sha256sum", "import typer, rich"
_SURGERY_ROUNDS, _START_ROUNDS = 5, 15


def surgery_groups(bench: OverheadRun) -> list[MeasuredGroup]:
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
            SHA256SUM: lambda: _run("sha256sum", *files),
            "cp -r": lambda: _run("cp", "-r", str(base), new()),
            "otter graft": lambda: otter("graft", str(base), new()),
            "otter graft --copy": lambda: otter("graft", str(base), new(), "--copy"),
            "otter verify --static": lambda: otter(
                "verify", str(grafted), "--static", "--proof", new()
            ),
            "otter strip": lambda: otter("strip", str(grafted), new()),
        }
        times = interleaved(
            steps, min(_SURGERY_ROUNDS, bench.rounds), synchronise=_no_synchronise, warm_up=1
        )
        stored = sum(path.stat().st_size for path in base.iterdir())
    figures = {SHA256SUM: {"base, bytes": float(stored)}}
    notes = ["Whole commands, start-up and the digest of every file of the base included."]
    lines = measured_lines(times, SHA256SUM, figures=figures)
    return [
        MeasuredGroup(title="Surgery", reference=SHA256SUM, per="command", notes=notes, lines=lines)
    ]


def start_up_groups(bench: OverheadRun) -> list[MeasuredGroup]:
    """Whole processes; the 7B base is its headers and a hole: nothing reads the weights."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "llama-7b"
        hollow_checkpoint("llama-7b", base)

        def start(*command: str) -> Callable[[], None]:
            # As installed packages are: their bytecode lies beside them from the first round on.
            return lambda: _run(*command, PYTHONDONTWRITEBYTECODE="")

        steps: dict[str, Callable[[], None]] = {
            BARE_IMPORT: start(sys.executable, "-c", BARE_IMPORT),
            "otter --help": start(*OTTER, "--help"),
            "otter inspect, 7B": start(*OTTER, "inspect", str(base)),
            "otter graft --dry-run, 7B": start(
                *OTTER, "graft", str(base), str(base) + "-out", "--dry-run"
            ),
        }
        times = interleaved(
            steps, min(_START_ROUNDS, bench.rounds), synchronise=_no_synchronise, warm_up=1
        )
    notes = ["Whole processes, the interpreter's own start included."]
    lines = measured_lines(times, BARE_IMPORT)
    return [
        MeasuredGroup(
            title="Start-up", reference=BARE_IMPORT, per="process", notes=notes, lines=lines
        )
    ]


def hollow_checkpoint(shape: str, folder: Path, shards: int = 3) -> None:
    """A checkpoint of that shape in bf16: true headers, and holes where the weights would be."""
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


def _no_synchronise() -> None:
    """Processes have ended when they return."""


# What is measured beside prefill and decode, in the order in which it is shown.
GROUPS: dict[str, Callable[[OverheadRun], list[MeasuredGroup]]] = {
    "peers": peer_groups,
    "decoding": guided_decoding_groups,
    "speculative": speculative_groups,
    "training": training_groups,
    "surgery": surgery_groups,
    "start-up": start_up_groups,
    "profile": profile_groups,
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class OverheadOptions:
    """What the command line says; `sizes` are `resolve`'s, for a shape."""

    folder: Path | None
    shape: str | None
    sizes: dict[str, Any]
    dtype: str | None
    device: str
    threads: int | None
    batch: int
    context: int
    repeats: int
    groups: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the first row is called."""
        if self.folder is not None:
            return self.folder.resolve().name
        return "as asked" if self.sizes.keys() - {"signals"} else "default"

    def check(self) -> None:
        """Raises OtterError for what cannot be measured."""
        if (self.folder is None) == (self.shape is None):
            raise OtterError(
                "what is to be measured: a grafted folder or a shape",
                hint=f"name one of them: OUT, or --shape {'|'.join(SHAPES)}",
            )
        if self.folder is not None and self.sizes.keys() - {"signals"}:
            raise OtterError(
                "sizes belong to --shape: a grafted folder has its own",
                hint="leave --hidden, --heads, --ffn and --kv out",
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise OtterError(f"--dtype {self.dtype!r}", hint=" | ".join(DTYPES))
        for name in ("batch", "context", "repeats"):
            if getattr(self, name) < 1:
                raise OtterError(f"--{name} {getattr(self, name)}", hint="1 or more")


def run_overhead(asked: OverheadOptions) -> OverheadResult:
    """Measures; what is slow to set up is said on stderr. Raises OtterError."""
    asked.check()
    with _torch_threads(asked.threads) as threads:
        subject = load_subject(asked)
        settings = overhead_settings(asked, subject, threads)
        rates = _measure_rates(subject)
        say(f"{subject.name}: base and graft in turns, {settings.repeats} rounds")
        measured = {
            asked.label: (
                subject,
                measure_prefill_decode(subject, settings, random_reward_model(subject.stock)),
            )
        }
        if "sweep" in asked.groups:
            measured |= _measure_sweep(subject, settings)
        # Before and after, since other work on the machine comes and goes.
        rates = rates.best(_measure_rates(subject))
        rows = [
            overhead_row(name, one, settings, found, rates)
            for name, (one, found) in measured.items()
        ]
        bench = OverheadRun(subject, settings, rates)
        groups: list[MeasuredGroup] = []
        for name in asked.groups:
            if name != "sweep":
                say(f"{subject.name}: {name}")
                groups += GROUPS[name](bench)
        return OverheadResult(
            settings=settings,
            machine=machine_name(),
            rates=rates,
            rows=rows,
            groups=groups,
            provenance=provenance(),
        )


def _measure_sweep(
    subject: BaseWithGraft, settings: OverheadSettings
) -> dict[str, tuple[BaseWithGraft, PrefillDecodeTimes]]:
    """Insertions of growing size on the same base: FFN units alone, heads alone."""
    found = {}
    spent: SizedPart
    for spent in ("FFN", "attention"):
        for share in SWEEP:
            plan = plan_of_share(subject.shape, subject.parameters, share, spent)
            # What it came to: a head cannot be cut into parts.
            name = f"{spent}, {100 * plan.parameters / subject.parameters:.2g} %"
            if name not in found:
                say(f"{subject.name}: {name}")
                one = graft_in_memory(subject.name, subject.stock, plan)
                found[name] = (one, measure_prefill_decode(one, settings))
    return found


def load_subject(asked: OverheadOptions) -> BaseWithGraft:
    import torch

    dtype: torch.dtype | None = getattr(torch, asked.dtype) if asked.dtype else None
    if asked.folder is not None:
        return from_folder(asked.folder, dtype=dtype, device=asked.device)
    assert asked.shape is not None
    say(f"a random base of shape {asked.shape}")
    return from_shape(asked.shape, asked.sizes, dtype=dtype or torch.float32, device=asked.device)


def overhead_settings(
    asked: OverheadOptions, subject: BaseWithGraft, threads: int
) -> OverheadSettings:
    """Raises OtterError where context and repeats exceed the base's window."""
    needed = asked.context + WARM_UP + asked.repeats
    if needed > subject.shape.max_positions:
        raise OtterError(
            f"{asked.context} tokens of context, {WARM_UP} steps to warm up and {asked.repeats} "
            f"repeats exceed the base's window of {subject.shape.max_positions}",
            hint="lower --context or --repeats",
        )
    return OverheadSettings(
        subject=subject.name,
        dtype=str(subject.stock.dtype).removeprefix("torch."),
        device=asked.device,
        threads=threads,
        batch=asked.batch,
        context=asked.context,
        repeats=asked.repeats,
        stream=_stream_backend(asked.device),
    )


def _stream_backend(device: str) -> str:
    from otter_cli.accel.native_library import native_status

    return native_status() if device == "cpu" else "torch's operations"


def _measure_rates(subject: BaseWithGraft) -> MachineRates:
    # A base that fits the processor's caches is a smoke run, and so are its rates.
    scale = 1.0 if subject.parameters > 2**24 else 1 / 16
    return measure_rates(subject.stock.dtype, subject.stock.device.type, scale=scale)


@contextmanager
def _torch_threads(wanted: int | None) -> Iterator[int]:
    """Torch's threads for as long as it measures."""
    import torch

    before = torch.get_num_threads()
    set_threads: Callable[[int], None] = torch.set_num_threads
    set_threads(wanted or before)
    try:
        yield wanted or before
    finally:
        set_threads(before)
