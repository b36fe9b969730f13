"""What `otter doctor PATH` shows of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.cli.app import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.verification.findings import Finding
    from otter_cli.verification.health import Health

_SHOWN = 20


def examine(path: Path) -> Outcome:
    """Exit code 1 when anything is wrong with the folder."""
    from otter_cli.verification.health import check_health

    health = check_health(path)
    data = {"healthy": health.healthy, **health.__dict__}
    return Outcome(data, lambda: _page(health), exit_code=int(not health.healthy))


def _page(health: Health) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("folder", f"{health.path} ({health.kind})")
    for title, text in _checks(health):
        facts.add_row(title, text)
    for note in health.notes:
        facts.add_row("note", note)
    lines: list[RenderableType] = [
        Text.assemble(("wrong", "red"), f": {_text(health, p)}") for p in health.problems[:_SHOWN]
    ]
    if more := len(health.problems) - _SHOWN:
        lines += [f"and {more} more; --json lists all"] if more > 0 else []
    count = len(health.problems)
    verdict = "healthy" if health.healthy else f"{count} thing{'s' * (count > 1)} wrong"
    return Group(facts, "", *lines, verdict)


def _checks(health: Health) -> list[tuple[str, str]]:
    from otter_cli.core.units import count_text

    found = []
    if health.digests:
        found.append(("digests", f"{health.digests} compared with otter.json"))
    if health.tensors:
        types = ", ".join(f"{count_text(n)} {dtype}" for dtype, n in health.dtypes.items())
        found.append(("tensors", f"{health.tensors}" + (f" ({types})" if types else "")))
    if health.shapes:
        found.append(("shapes", f"{health.shapes} compared with config.json"))
        is_ = "tied to the embedding" if health.tied else "a tensor of its own"
        found.append(("head", is_))
    if health.values:
        found.append(("values", f"{count_text(health.values)} looked at for NaN and infinity"))
    return found


def _text(health: Health, problem: Finding) -> str:
    where = str(health.path)
    return problem.what if problem.what.startswith(where) else str(problem)
