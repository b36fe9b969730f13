"""`otter doctor`: is this machine fit for the work, and is this folder sound?"""

from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.app import Outcome, verb, verb_app
from otter_cli.core.provenance import hardware, versions
from otter_cli.core.units import bytes_text

if TYPE_CHECKING:
    from rich.console import RenderableType

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
        from otter_cli.cli.doctor_folder import examine

        return examine(path)
    return _machine()


def _machine() -> Outcome:
    import psutil

    required = requirements()
    if _installed("torch"):
        import_module("torch")  # hardware() lists accelerators only where torch is loaded
    machine = {**hardware(), "memory_available_bytes": psutil.virtual_memory().available}
    if all(r.fine for r in required):
        from otter_cli.model.native import by_what

        machine["stream"] = by_what()
    problems = [_problem(r) for r in required if not r.fine]
    data = {
        "healthy": not problems,
        "problems": problems,
        "versions": versions(),
        "hardware": machine,
    }
    return Outcome(data, lambda: _page(required, machine, problems), exit_code=int(bool(problems)))


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


def _page(
    required: list[Requirement], machine: dict[str, Any], problems: list[str]
) -> "RenderableType":
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
