"""What both demos do: time their steps, graft, verify, and report the price and the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otter_cli.core.atomic import write_json
from otter_cli.core.console import say
from otter_cli.core.formatting import count_text, percent_text, seconds_text
from otter_cli.core.provenance import hardware, versions
from otter_cli.reports.page import ReportTable

if TYPE_CHECKING:
    from otter_cli.checkpoint.link_or_copy import PlacementMode
    from otter_cli.graft.price import Price
    from otter_cli.verification.grid import Grid
    from otter_cli.verification.report import Verdict, VerificationReport


class StepTimer:
    """Announces the steps `names` of a demo. `seconds` holds the duration of each finished step."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        say(f"step {self.names.index(name) + 1} of {len(self.names)}: {name}")
        started = perf_counter()
        yield
        self.seconds[name] = perf_counter() - started
        say(f"  {seconds_text(self.seconds[name])}")


def graft_base(
    base: Path,
    out: Path,
    *,
    source: str,
    signals: Sequence[str],
    mode: PlacementMode = "link",
    **form: Any,
) -> Price:
    """Grafts `base` to `out`, unless `out` exists, and returns the price of the insertion.

    `source` is the name of the base that is recorded. `form` holds sizes and initial values, as
    `plan_insertion` takes them. Raises OtterError.
    """
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.graft.plan import plan_insertion
    from otter_cli.graft.price import price
    from otter_cli.graft.surgery import graft

    checkpoint = Checkpoint.open(base)
    plan = plan_insertion(checkpoint, signals, **form)
    if not out.exists():
        graft(checkpoint, out, plan, source=source, mode=mode)
    return price(plan, checkpoint)


def verify_graft(
    grafted: Path, proof: Path, base: Path | None = None, grid: Grid | None = None
) -> tuple[VerificationReport, Verdict]:
    """Verifies a graft and writes the proof to a file. Defaults: the base inside the graft, and the
    usual grid."""
    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.grid import Grid
    from otter_cli.verification.proof import proof_record
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify

    report = verify(VerificationRequest(grafted, base, grid or Grid()))
    verdict = decide(report)
    write_json(proof, proof_record(report, verdict))
    return report, verdict


def price_table(price: Price) -> ReportTable:
    """Inserted parameters by part, each with its share of the base's."""
    rows = [
        [part, count_text(count), percent_text(count / price.base_parameters)]
        for part, count in price.by_part.items()
    ]
    rows.append(["all", count_text(price.inserted_parameters), percent_text(price.ratio)])
    return ReportTable(["inserted", "parameters", "of the base"], rows)


def run_facts(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """The facts at the end of a report: the time of each step, the machine, the versions."""
    machine = hardware()
    packages = [f"{name} {version}" for name, version in versions().items()]
    return [
        *((f"time of {name}", seconds_text(spent)) for name, spent in seconds.items()),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
        ("versions", ", ".join(packages)),
    ]
