"""The demo's report: one page from the graft's price to the last benchmark."""

from __future__ import annotations

from pathlib import Path

from otter_cli.core.provenance import hardware, versions
from otter_cli.core.units import bytes_text, count_text, percent_text, seconds_text
from otter_cli.demo.run import Demo
from otter_cli.reports import Report, Section, Table
from otter_cli.reports.benchmark import benchmark_sections
from otter_cli.reports.files import write_report
from otter_cli.reports.training import training_section
from otter_cli.reports.verification import verification_sections

LEAD = (
    "A tiny Llama that ships with otter, trained on text of a small synthetic world: polite and "
    "rude exchanges that a seeded grammar writes. Every number here is about that world."
)
_TRAINING = (
    "Equal data and steps. The insertion reads the frozen base and trains beside it; task head "
    "only is the same heads on the frozen final state; the separate reward model is a full copy "
    "of the base, all of whose weights are trained, for the reward alone."
)


def demo_report(demo: Demo) -> Report:
    """Everything that the demo found, as one report."""
    labels = {"insertion": "insertion", "head": "task head only", "separate": "separate model"}
    runs = {labels[name]: run for name, run in demo.trained.items()}
    sections = [_graft(demo), training_section(runs, _TRAINING), _verdict(demo)]
    sections += verification_sections(demo.verification)
    for result in demo.results.values():
        sections += benchmark_sections(result)
    return Report("otter demo (synthetic)", LEAD, sections, _facts(demo))


def write_demo_report(demo: Demo) -> Path:
    """Writes report.html and report.md into the demo's folder; the HTML's path."""
    return write_report(demo_report(demo), demo.folder)


def _graft(demo: Demo) -> Section:
    price = demo.price
    rows = [
        [part, count_text(count), percent_text(count / price.base_parameters)]
        for part, count in price.by_part.items()
    ]
    rows.append(["all", count_text(price.inserted_parameters), percent_text(price.ratio)])
    growth = price.inserted_cache_bytes_per_token
    share = growth / (price.base_cache_bytes_per_token or growth or 1)
    text = (
        f"The base has {count_text(price.base_parameters)} parameters. Inserted, stored apart: "
        f"{bytes_text(price.inserted_bytes)}; the KV cache grows by {bytes_text(growth)} a token, "
        f"{percent_text(share)} of the base's."
    )
    return Section("Graft", [text], [Table(["inserted", "parameters", "of the base"], rows)])


def _verdict(demo: Demo) -> Section:
    return Section(f"Verify: {demo.verdict.name}", [demo.verdict.sentence])


def _facts(demo: Demo) -> list[tuple[str, str]]:
    machine = hardware()
    packages = [f"{name} {version}" for name, version in versions().items()]
    auc = ", ".join(f"{label} {value:.3f}" for label, value in demo.auc.items())
    return [
        ("toxicity classifier", f"in Detoxify's format, trained here; held-out AUC: {auc}"),
        *((f"time of {name}", seconds_text(spent)) for name, spent in demo.seconds.items()),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
        ("versions", ", ".join(packages)),
    ]
