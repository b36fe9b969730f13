"""The report of the sentiment demo: the answer, the texts side by side, how they came about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import count_text, percent_text, seconds_text
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.core.provenance import hardware, versions
from otter_cli.demo.sentiment_demo import METHODS, VALUE_SIGNAL, SentimentDemo
from otter_cli.reports.benchmark import benchmark_sections
from otter_cli.reports.model_card import training_section
from otter_cli.reports.page import (
    Cell,
    ColouredText,
    Report,
    ReportSection,
    ReportTable,
    scale_of,
)
from otter_cli.reports.report_files import write_report
from otter_cli.reports.verification import verification_sections

if TYPE_CHECKING:
    from otter_cli.benchmarks.metrics.estimates import Estimate


_PROMPTS_SHOWN = 6
_COLOURS_TEXT = (
    "Each token's colour is the value that the insertion reads there, in the same forward pass: "
    "how positive the text is expected to end, from red (low) to green (high)."
)
_JUDGE_TEXT = (
    "VADER labelled the training texts. AFINN, a word list by another author, judges: a text "
    "counts as positive where its words sum to more than 0. Time is per token, one prompt at a "
    "time, the methods in turns on each prompt."
)


def sentiment_report(demo: SentimentDemo) -> Report:
    """Everything that the demo measured, as one report."""
    assert demo.result is not None and demo.verification is not None and demo.verdict is not None
    sections = [
        ReportSection("Side by side", [_COLOURS_TEXT], texts=list(_coloured_texts(demo))),
        ReportSection("What it costs and what it gives", [_JUDGE_TEXT], [_comparison_table(demo)]),
        ReportSection(f"Verified: {demo.verdict.name}", [demo.verdict.sentence]),
        _price_section(demo),
        training_section(
            {"insertion": demo.trained["insertion"], "LoRA reward model": demo.trained["lora"]},
            "The same texts and the same number of steps. The LoRA model is ARGS's.",
        ),
        *verification_sections(demo.verification),
        *benchmark_sections(demo.result),
    ]
    return Report(
        "otter demo: steering a real model's sentiment",
        headline(demo),
        sections,
        _report_facts(demo),
    )


def write_sentiment_report(demo: SentimentDemo) -> Path:
    """Writes report.html and report.md into the demo's folder; the HTML's path."""
    return write_report(sentiment_report(demo), demo.folder)


def headline(demo: SentimentDemo) -> str:
    """The comparison in one sentence, with its figures, whichever way it went."""
    assert demo.result is not None
    methods = demo.result.methods
    share = {name: methods[name].metrics["gold_reward"] for name in METHODS}
    time = {name: methods[name].metrics["time_ratio"] for name in ("one-pass", "args")}
    return (
        f"With otter in one pass, {_share_text(share['one-pass'])} of the texts are positive, "
        f"{_share_text(share['plain'])} without a guide and {_share_text(share['args'])} with a "
        f"second model "
        f"(ARGS). A token takes {_times_text(time['one-pass'])} plain decoding's time with otter "
        f"and "
        f"{_times_text(time['args'])} with the second model."
    )


def _share_text(estimate: Estimate) -> str:
    return f"{estimate.mean:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"


def _times_text(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] times"


def _comparison_table(demo: SentimentDemo) -> ReportTable:
    assert demo.result is not None
    rows: list[list[Cell | str]] = []
    for name, label in METHODS.items():
        metrics = demo.result.methods[name].metrics
        time = metrics.get("time_ratio")
        positive, perplexity = metrics["gold_reward"], metrics["perplexity"]
        rows.append(
            [
                label,
                Cell(f"{positive.mean:.0%}", f"[{positive.low:.0%}, {positive.high:.0%}]"),
                Cell(f"{time.mean:.2f}", f"[{time.low:.2f}, {time.high:.2f}]") if time else "1",
                Cell(f"{perplexity.mean:.1f}", f"[{perplexity.low:.1f}, {perplexity.high:.1f}]"),
            ]
        )
    count = demo.result.settings.prompts.count
    columns = [
        f"n = {count} prompts, 95 % intervals",
        "positive texts, by AFINN",
        "time per token, over plain",
        "perplexity under the base",
    ]
    return ReportTable(columns, rows)


def _coloured_texts(demo: SentimentDemo) -> Iterator[ColouredText]:
    """The same prompts by every method, coloured on one scale."""
    read = _read_values(demo)
    low, high = scale_of([value for *_, values in read for value in values])
    for label, prompt, tokens, values in read:
        yield ColouredText(label, prompt, tokens, values, low, high, f"ends at {values[-1]:.2f}")


def _read_values(demo: SentimentDemo) -> list[tuple[str, str, list[str], list[float]]]:
    """The first prompts' texts, read by the insertion's value after the fact: no guide is needed
    for that, so that plain's and ARGS's texts have colours too."""
    import torch

    from otter_cli.api.model import load
    from otter_cli.decoding.results import token_texts

    samples = {
        (s["method"], s["prompt"]): s
        for s in read_jsonlines(demo.folder / "compare" / "samples.jsonl")
    }
    prompts = list(read_jsonlines(demo.folder / "compare" / "prompts.jsonl"))[:_PROMPTS_SHOWN]
    model = load(demo.folder / "grafted")
    read = []
    for prompt in prompts:
        for name, label in METHODS.items():
            before: list[int] = list(prompt["tokens"])
            tokens: list[int] = samples[name, prompt["name"]]["tokens"]
            with torch.no_grad():
                out = model(torch.tensor([before + tokens]), signals=(VALUE_SIGNAL,), logits=False)
            values: Any = out.signals[VALUE_SIGNAL][0, len(before) :].float().tolist()
            read.append(
                (label, prompt["text"], token_texts(model.tokenizer, before, tokens), values)
            )
    return read


def _price_section(demo: SentimentDemo) -> ReportSection:
    price = demo.price
    assert price is not None
    rows = [
        [part, count_text(count), percent_text(count / price.base_parameters)]
        for part, count in price.by_part.items()
    ]
    rows.append(["all", count_text(price.inserted_parameters), percent_text(price.ratio)])
    text = f"The base has {count_text(price.base_parameters)} parameters and stays as it is."
    return ReportSection(
        "What was inserted", [text], [ReportTable(["inserted", "parameters", "of the base"], rows)]
    )


def _report_facts(demo: SentimentDemo) -> list[tuple[str, str]]:
    machine = hardware()
    packages = [f"{name} {version}" for name, version in versions().items()]
    return [
        ("base", demo.base.name),
        *((f"time of {name}", seconds_text(spent)) for name, spent in demo.seconds.items()),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
        ("versions", ", ".join(packages)),
    ]
