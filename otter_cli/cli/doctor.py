"""`otter doctor`: checks the machine, or, with a path, a folder.

The machine: versions, hardware and memory against the package's requirements. A folder: digests,
tensors and shapes, NaN and infinity. The exit code is 1 when anything is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.formatting import bytes_text
from otter_cli.core.provenance import hardware, versions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.verification.health import Health
    from otter_cli.verification.static import Finding


app = verb_app()


@dataclass(frozen=True)
class Requirement:
    """One dependency of the package: what it asks for, and what is installed (None: nothing)."""

    package: str
    wanted: str
    installed: str | None
    fine: bool


@verb(app, example="otter doctor\notter doctor grafted")
def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="a base, a graft or an adapter to examine")
    ] = None,
) -> Outcome:
    """Show versions, hardware and memory, and what is missing; with PATH, examine a folder.

    Of a folder: digests, tensors and shapes against its configuration, dtypes, tied embeddings,
    NaN and infinity in every tensor. Exit code 1 when anything is wrong.
    """
    if path is not None:
        return _check_folder(path)
    return _check_machine()


def _check_machine() -> Outcome:
    import psutil

    required = requirements()
    if _installed("torch"):
        import_module("torch")  # hardware() lists accelerators only where torch is loaded
    machine = {**hardware(), "memory_available_bytes": psutil.virtual_memory().available}
    if all(r.fine for r in required):
        from otter_cli.accel.native_library import native_status

        machine["stream"] = native_status()
    problems = [_problem(r) for r in required if not r.fine]
    data = {
        "healthy": not problems,
        "problems": problems,
        "versions": versions(),
        "hardware": machine,
    }
    return Outcome(
        data, lambda: _machine_page(required, machine, problems), exit_code=int(bool(problems))
    )


def requirements(package: str = "otter-cli") -> list[Requirement]:
    """What the installed package's own metadata asks for, extras apart, against what is there."""
    from packaging.requirements import Requirement as Parsed

    found = []
    for line in metadata.requires(package) or []:
        parsed = Parsed(line)
        if parsed.marker is None or parsed.marker.evaluate({"extra": ""}):
            installed = _installed(parsed.name)
            # A local build's version, 2.13.0+cpu, counts as the release it was built from.
            fine = installed is not None and parsed.specifier.contains(installed, prereleases=True)
            found.append(Requirement(parsed.name, str(parsed.specifier), installed, fine))
    return found


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _problem(requirement: Requirement) -> str:
    has = f"{requirement.installed} is installed" if requirement.installed else "not installed"
    return f"{requirement.package}{requirement.wanted}: {has}"


def _machine_page(
    required: list[Requirement], machine: dict[str, Any], problems: list[str]
) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("system", f"{machine['system']}, python {versions()['python']}")
    facts.add_row("processor", f"{machine['cpu']}, {machine['cores']} usable cores")
    memory, available = machine["memory_bytes"], machine["memory_available_bytes"]
    facts.add_row("memory", f"{bytes_text(memory)}, {bytes_text(available)} available")
    facts.add_row("accelerators", ", ".join(machine["accelerators"]) or "none")
    if "stream" in machine:
        facts.add_row("inserted stream", f"on the processor by {machine['stream']}")
    packages = Table("package", "wanted", "installed", "", box=None, pad_edge=False)
    for r in required:
        state = "" if r.fine else Text("missing", style="red")
        packages.add_row(r.package, r.wanted, r.installed or "-", state)
    verdict = "everything is there" if not problems else f"missing: {'; '.join(problems)}"
    return Group(facts, "", packages, "", verdict)


_MAX_PROBLEMS_SHOWN = 20


def _check_folder(path: Path) -> Outcome:
    """Exit code 1 when anything is wrong with the folder."""
    from otter_cli.verification.health import check_health

    health = check_health(path)
    data = {"healthy": health.healthy, **health.__dict__}
    return Outcome(data, lambda: _folder_page(health), exit_code=int(not health.healthy))


def _folder_page(health: Health) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("folder", f"{health.path} ({health.kind})")
    for title, text in _check_rows(health):
        facts.add_row(title, text)
    for note in health.notes:
        facts.add_row("note", note)
    lines: list[RenderableType] = [
        Text.assemble(("wrong", "red"), f": {_problem_text(health, p)}")
        for p in health.problems[:_MAX_PROBLEMS_SHOWN]
    ]
    if more := len(health.problems) - _MAX_PROBLEMS_SHOWN:
        lines += [f"and {more} more; --json lists all"] if more > 0 else []
    count = len(health.problems)
    verdict = "healthy" if health.healthy else f"{count} thing{'s' * (count > 1)} wrong"
    return Group(facts, "", *lines, verdict)


def _check_rows(health: Health) -> list[tuple[str, str]]:
    from otter_cli.core.formatting import count_text

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


def _problem_text(health: Health, problem: Finding) -> str:
    where = str(health.path)
    return problem.what if problem.what.startswith(where) else str(problem)
