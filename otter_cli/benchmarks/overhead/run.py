"""A measurement from what was asked for to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.classifier import separate
from otter_cli.benchmarks.overhead.clock import WARM_UP
from otter_cli.benchmarks.overhead.commands import start_up, surgery
from otter_cli.benchmarks.overhead.costs import Measured, measure, row
from otter_cli.benchmarks.overhead.decoding import decoding
from otter_cli.benchmarks.overhead.drafting import drafting
from otter_cli.benchmarks.overhead.machine import Rates, machine_name, measure_rates
from otter_cli.benchmarks.overhead.peers import peers
from otter_cli.benchmarks.overhead.profile import profile
from otter_cli.benchmarks.overhead.result import Group, OverheadResult, Settings
from otter_cli.benchmarks.overhead.shapes import SHAPES
from otter_cli.benchmarks.overhead.sizes import SWEEP, Spent, sized
from otter_cli.benchmarks.overhead.subject import Subject, from_folder, from_shape, insert
from otter_cli.benchmarks.overhead.training import training
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance

if TYPE_CHECKING:
    import torch

# What is measured beside prefill and decode, in the order in which it is shown.
GROUPS: dict[str, Callable[[Bench], list[Group]]] = {
    "peers": peers,
    "decoding": decoding,
    "speculative": drafting,
    "training": training,
    "surgery": surgery,
    "start-up": start_up,
    "profile": profile,
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Asked:
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


def run(asked: Asked) -> OverheadResult:
    """Measures; what is slow to set up is said on stderr. Raises OtterError."""
    asked.check()
    with _threads(asked.threads) as threads:
        subject = load(asked)
        settings = settings_of(asked, subject, threads)
        rates = _rates(subject)
        say(f"{subject.name}: base and graft in turns, {settings.repeats} rounds")
        measured = {asked.label: (subject, measure(subject, settings, separate(subject.stock)))}
        if "sweep" in asked.groups:
            measured |= _sweep(subject, settings)
        # Before and after, since other work on the machine comes and goes.
        rates = rates.best(_rates(subject))
        rows = [row(name, one, settings, found, rates) for name, (one, found) in measured.items()]
        bench = Bench(subject, settings, rates)
        groups: list[Group] = []
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


def _sweep(subject: Subject, settings: Settings) -> dict[str, tuple[Subject, Measured]]:
    """Insertions of growing size on the same base: FFN units alone, heads alone."""
    found = {}
    spent: Spent
    for spent in ("FFN", "attention"):
        for share in SWEEP:
            plan = sized(subject.shape, subject.parameters, share, spent)
            # What it came to: a head cannot be cut into parts.
            name = f"{spent}, {100 * plan.parameters / subject.parameters:.2g} %"
            if name not in found:
                say(f"{subject.name}: {name}")
                one = insert(subject.name, subject.stock, plan)
                found[name] = (one, measure(one, settings))
    return found


def load(asked: Asked) -> Subject:
    import torch

    dtype: torch.dtype | None = getattr(torch, asked.dtype) if asked.dtype else None
    if asked.folder is not None:
        return from_folder(asked.folder, dtype=dtype, device=asked.device)
    assert asked.shape is not None
    say(f"a random base of shape {asked.shape}")
    return from_shape(asked.shape, asked.sizes, dtype=dtype or torch.float32, device=asked.device)


def settings_of(asked: Asked, subject: Subject, threads: int) -> Settings:
    """Raises OtterError where context and repeats exceed the base's window."""
    needed = asked.context + WARM_UP + asked.repeats
    if needed > subject.shape.max_positions:
        raise OtterError(
            f"{asked.context} tokens of context, {WARM_UP} steps to warm up and {asked.repeats} "
            f"repeats exceed the base's window of {subject.shape.max_positions}",
            hint="lower --context or --repeats",
        )
    return Settings(
        subject=subject.name,
        dtype=str(subject.stock.dtype).removeprefix("torch."),
        device=asked.device,
        threads=threads,
        batch=asked.batch,
        context=asked.context,
        repeats=asked.repeats,
        stream=_stream(asked.device),
    )


def _stream(device: str) -> str:
    from otter_cli.model.native import by_what

    return by_what() if device == "cpu" else "torch's operations"


def _rates(subject: Subject) -> Rates:
    # A base that fits the processor's caches is a smoke run, and so are its rates.
    scale = 1.0 if subject.parameters > 2**24 else 1 / 16
    return measure_rates(subject.stock.dtype, subject.stock.device.type, scale=scale)


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """Torch's threads for as long as it measures."""
    import torch

    before = torch.get_num_threads()
    set_threads: Callable[[int], None] = torch.set_num_threads
    set_threads(wanted or before)
    try:
        yield wanted or before
    finally:
        set_threads(before)
