"""The report of the sentiment demo: the comparison in one sentence, texts side by side, details."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import count_text
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.demo.sentiment_demo import METHODS, VALUE_SIGNAL, SentimentDemo
from otter_cli.demo.steps import price_table, run_facts
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
from otter_cli.reports.verification import verification_sections

if TYPE_CHECKING:
    from otter_cli.benchmarks.metrics.estimates import Estimate


_PROMPTS_SHOWN = 6
_COLOURS_TEXT = (
    "Each token's colour is the value that the insertion reads there, in the same forward pass: "
    "how positive the text is expected to end, from red (low) to green (high)."
)
_JUDGE_TEXT = (
    "VADER labelled the training texts. AFINN, a word list by another author, is the judge: a text "
    "counts as positive if the scores of its words sum to more than 0. Time is per token, for one "
    "prompt at a time, with each method in turn on each prompt."
)


def sentiment_report(demo: SentimentDemo) -> Report:
    """All results of the demo as one report."""
    sections = [
        ReportSection("Side by side", [_COLOURS_TEXT], texts=list(_coloured_texts(demo))),
        ReportSection("What it costs and what it gives", [_JUDGE_TEXT], [_comparison_table(demo)]),
        ReportSection(f"Verified: {demo.verdict.name}", [demo.verdict.sentence]),
        ReportSection("What was inserted", [_price_text(demo)], [price_table(demo.price)]),
        training_section(
            {"insertion": demo.trained["insertion"], "LoRA reward model": demo.trained["lora"]},
            "The same texts and the same number of steps. The LoRA model is ARGS's.",
        ),
        *verification_sections(demo.verification),
        *benchmark_sections(demo.result),
    ]
    facts = [("base", demo.base.name), *run_facts(demo.seconds)]
    return Report("otter demo: steering a real model's sentiment", headline(demo), sections, facts)


def headline(demo: SentimentDemo) -> str:
    """The comparison in two sentences, with its figures, whatever the outcome."""
    methods = demo.result.methods
    share = {name: methods[name].metrics["gold_reward"] for name in METHODS}
    time = {name: methods[name].metrics["time_ratio"] for name in ("one-pass", "args")}
    return (
        f"With otter in one pass, {_share_text(share['one-pass'])} of the texts are positive, "
        f"{_share_text(share['plain'])} without a guide and {_share_text(share['args'])} with a "
        f"second model (ARGS). A token takes {_times_text(time['one-pass'])} as long as in plain "
        f"decoding with otter, and {_times_text(time['args'])} with the second model."
    )


def _share_text(estimate: Estimate) -> str:
    return " ".join(_figures(estimate, ".0%"))


def _times_text(estimate: Estimate) -> str:
    mean, interval = _figures(estimate, ".2f")
    return f"{mean} times ({interval} within this run)"


def _figures(estimate: Estimate, spec: str) -> tuple[str, str]:
    """The mean and the interval, each number in the format `spec`."""
    return f"{estimate.mean:{spec}}", f"[{estimate.low:{spec}}, {estimate.high:{spec}}]"


def _comparison_table(demo: SentimentDemo) -> ReportTable:
    rows: list[list[Cell | str]] = []
    for name, label in METHODS.items():
        metrics = demo.result.methods[name].metrics
        time = metrics.get("time_ratio")
        rows.append(
            [
                label,
                Cell(*_figures(metrics["gold_reward"], ".0%")),
                Cell(*_figures(time, ".2f")) if time else "1",
                Cell(*_figures(metrics["perplexity"], ".1f")),
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
    """The texts of every method on the same prompts, coloured on one scale."""
    scored_texts = _score_texts(demo)
    low, high = scale_of([value for *_, values in scored_texts for value in values])
    for label, prompt, tokens, values in scored_texts:
        yield ColouredText(label, prompt, tokens, values, low, high, f"ends at {values[-1]:.2f}")


def _score_texts(demo: SentimentDemo) -> list[tuple[str, str, list[str], list[float]]]:
    """Label, prompt, tokens and values [tokens] of each method's text on the first prompts.

    The insertion scores the finished texts, so that those of plain decoding and ARGS have colours
    too."""
    import torch

    from otter_cli.api.model import load
    from otter_cli.decoding.results import token_texts

    samples = {
        (s["method"], s["prompt"]): s
        for s in read_jsonlines(demo.folder / "compare" / "samples.jsonl")
    }
    prompts = list(read_jsonlines(demo.folder / "compare" / "prompts.jsonl"))[:_PROMPTS_SHOWN]
    model = load(demo.folder / "grafted")
    scored = []
    for prompt in prompts:
        for name, label in METHODS.items():
            before: list[int] = list(prompt["tokens"])
            tokens: list[int] = samples[name, prompt["name"]]["tokens"]
            with torch.no_grad():
                out = model(torch.tensor([before + tokens]), signals=(VALUE_SIGNAL,), logits=False)
            values: Any = out.signals[VALUE_SIGNAL][0, len(before) :].float().tolist()
            texts = token_texts(model.tokenizer, before, tokens)
            scored.append((label, prompt["text"], texts, values))
    return scored


def _price_text(demo: SentimentDemo) -> str:
    return f"The base has {count_text(demo.price.base_parameters)} parameters and does not change."
