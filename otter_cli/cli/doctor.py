"""`otter doctor`: checks the machine, or, with a path, a folder.

The machine: versions, hardware and memory against the package's requirements. A folder: digests,
tensors and shapes, NaN and infinity. The exit code is 1 when anything is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.tables import facts_table, legend, plain_table
from otter_cli.core.distribution import DISTRIBUTION
from otter_cli.core.formatting import bytes_text, count_text
from otter_cli.core.provenance import hardware, versions
from otter_cli.core.threads import SLEEP

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.verification.health import Health
    from otter_cli.verification.static import Finding


app = verb_app()


@dataclass(frozen=True)
class Requirement:
    """One dependency: the versions that the package requires, and the installed one, if any."""

    package: str
    specifier: str
    installed: str | None
    satisfied: bool


@verb(app, example="otter doctor\notter doctor grafted")
def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="a base, a graft or an adapter to check")
    ] = None,
) -> Outcome:
    """Show versions, hardware, memory and missing packages. With PATH, check that folder instead.

    The check of a folder compares digests, tensors and shapes with its configuration, and looks for
    NaN and infinity in every tensor. The exit code is 1 if anything is wrong.

    The machine's page says what runs the inserted stream. OTTER_BACKEND=torch, packed or native in
    the environment requires one of the backends; the default is the fastest that supports a call.
    """
    return _check_machine() if path is None else _check_folder(path)


def _check_machine() -> Outcome:
    import psutil

    from otter_cli.core.threads import prepare_threads

    required = requirements()
    threads = prepare_threads()  # as every verb that runs models does, before torch is loaded
    if _installed("torch"):
        import_module("torch")  # hardware() lists accelerators only if torch is loaded
    machine = {**hardware(), "memory_available_bytes": psutil.virtual_memory().available}
    if threads is not None:
        machine["threads"] = {**asdict(threads), "sentence": threads.sentence}
    problems = [_problem(r) for r in required if not r.satisfied]
    if not problems:
        from otter_cli.accel.stream_path import machine_stream_path

        machine["stream"] = machine_stream_path()
    data = {
        "healthy": not problems,
        "problems": problems,
        "versions": versions(),
        "hardware": machine,
    }
    return Outcome(
        data, lambda: _machine_page(required, machine, problems), exit_code=int(bool(problems))
    )


def requirements(package: str = DISTRIBUTION) -> list[Requirement]:
    """The dependencies in the metadata of the installed package, without extras."""
    from packaging.requirements import Requirement as ParsedRequirement

    dependencies = []
    for line in metadata.requires(package) or []:
        parsed = ParsedRequirement(line)
        if parsed.marker is None or parsed.marker.evaluate({"extra": ""}):
            installed = _installed(parsed.name)
            # The version of a local build, 2.13.0+cpu, counts as the release it was built from.
            satisfied = installed is not None and parsed.specifier.contains(
                installed, prereleases=True
            )
            dependencies.append(
                Requirement(parsed.name, str(parsed.specifier), installed, satisfied)
            )
    return dependencies


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _problem(requirement: Requirement) -> str:
    has = f"{requirement.installed} is installed" if requirement.installed else "not installed"
    return f"{requirement.package}{requirement.specifier}: {has}"


def _machine_page(
    required: list[Requirement], machine: dict[str, Any], problems: list[str]
) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    memory, available = machine["memory_bytes"], machine["memory_available_bytes"]
    facts = [
        ("system", f"{machine['system']}, python {versions()['python']}"),
        ("processor", f"{machine['cpu']}, {machine['cores']} usable cores"),
        ("memory", f"{bytes_text(memory)}, {bytes_text(available)} available"),
        ("accelerators", ", ".join(machine["accelerators"]) or "none"),
    ]
    if "threads" in machine:
        facts += [("threads", machine["threads"]["sentence"]), _waiting_row(machine["threads"])]
    if "stream" in machine:
        facts.append(("inserted stream", f"on the processor by {machine['stream']}"))
    packages = plain_table("package", "required", "installed", "")
    for r in required:
        state = "" if r.satisfied else Text("missing", style="red")
        packages.add_row(r.package, r.specifier, r.installed or "-", state)
    verdict = "nothing is missing" if not problems else f"missing: {'; '.join(problems)}"
    return Group(facts_table(facts), "", packages, legend(_PACKAGES_LEGEND), "", verdict)


_PACKAGES_LEGEND = "required: the versions that otter works with; installed: the one found here"


def _waiting_row(threads: dict[str, Any]) -> tuple[str, str]:
    sleep = threads["waiting"] == SLEEP
    return "waiting threads", "soon sleep" if sleep else f"as {threads['waiting']} says"


_MAX_PROBLEMS_SHOWN = 20


def _check_folder(path: Path) -> Outcome:
    from otter_cli.verification.health import check_health

    health = check_health(path)
    data = {"healthy": health.healthy, **health.__dict__}
    return Outcome(data, lambda: _folder_page(health), exit_code=int(not health.healthy))


def _folder_page(health: Health) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    facts = [("folder", f"{health.path} ({health.kind})"), *_check_rows(health)]
    facts += [("note", note) for note in health.notes]
    lines: list[RenderableType] = [
        Text.assemble(("wrong", "red"), f": {_problem_text(health, p)}")
        for p in health.problems[:_MAX_PROBLEMS_SHOWN]
    ]
    count = len(health.problems)
    if count > _MAX_PROBLEMS_SHOWN:
        lines.append(f"and {count - _MAX_PROBLEMS_SHOWN} more; --json lists all")
    verdict = "healthy" if health.healthy else f"{count} thing{'s' * (count > 1)} wrong"
    return Group(facts_table(facts), "", *lines, verdict)


def _check_rows(health: Health) -> Iterator[tuple[str, str]]:
    if health.digests:
        yield "digests", f"{health.digests} compared with otter.json"
    if health.tensors:
        types = ", ".join(f"{count_text(n)} {dtype}" for dtype, n in health.dtypes.items())
        yield "tensors", f"{health.tensors}" + (f" ({types})" if types else "")
    if health.shapes:
        yield "shapes", f"{health.shapes} compared with config.json"
        yield "head", "tied to the embedding" if health.tied else "a tensor of its own"
    if health.values:
        yield "values", f"{count_text(health.values)} checked for NaN and infinity"


def _problem_text(health: Health, problem: Finding) -> str:
    """The problem, without its place if the text begins with the folder."""
    return problem.what if problem.what.startswith(str(health.path)) else str(problem)
