"""A measurement from what was asked for to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead.clock import WARM_UP
from otter_cli.benchmarks.overhead.costs import measure, row
from otter_cli.benchmarks.overhead.machine import machine_name, measure_rates
from otter_cli.benchmarks.overhead.result import OverheadResult, Settings
from otter_cli.benchmarks.overhead.shapes import SHAPES
from otter_cli.benchmarks.overhead.subject import Subject, from_folder, from_shape
from otter_cli.benchmarks.result import RESULT
from otter_cli.core.atomic import write_json
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

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
    reward_model: bool = True

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
        rates = measure_rates(subject.stock.dtype, asked.device, scale=_scale(subject))
        say(f"{subject.name}: base and graft in turns, {settings.repeats} rounds")
        separate = reward_model(subject) if asked.reward_model else None
        measured = measure(subject, settings, separate)
        # Before and after, since other work on the machine comes and goes.
        again = measure_rates(subject.stock.dtype, asked.device, scale=_scale(subject))
        rates = rates.best(again)
        rows = [row(asked.label, subject, settings, measured, rates)]
        return OverheadResult(
            settings=settings,
            machine=machine_name(),
            rates=rates,
            rows=rows,
            provenance=provenance(),
        )


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
    )


def write(result: OverheadResult, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, result.model_dump(mode="json"))


def reward_model(subject: Subject) -> PreTrainedModel:
    """A separate one of the base's shape, with random weights of its own."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = type(subject.stock.config).from_dict(subject.stock.config.to_dict())
    config.num_labels = 1
    with torch.device(subject.stock.device):
        return AutoModelForSequenceClassification.from_config(
            config, dtype=subject.stock.dtype
        ).eval()


def _scale(subject: Subject) -> float:
    """A base that fits the processor's caches is a smoke run: so are its rates."""
    return 1.0 if subject.parameters > 2**24 else 1 / 16


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
