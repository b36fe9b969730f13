"""What `otter generate` hands back: a record of each text, and the page that people see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from otter_cli.core.units import percent_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.decoding import Generation
    from otter_cli.model import OtterForCausalLM


def labels_of(model: OtterForCausalLM, shown: list[str]) -> dict[str, list[str]]:
    """What the several scores of a signal are called."""
    configs = [model.signal_configs[name] for name in shown]
    return {config.name: list(config.labels) for config in configs if config.size > 1}


def record_of(
    prompt: str, ids: Sequence[int], row: Generation, tokenizer: Any, labels: dict[str, list[str]]
) -> dict[str, Any]:
    from otter_cli.decoding.texts import token_texts

    texts = token_texts(tokenizer, ids, row.tokens)
    special = set(tokenizer.all_special_ids)
    parts = zip(row.tokens, texts, strict=True)
    return {
        "prompt": prompt,
        "text": "".join(text for token, text in parts if token not in special),
        "tokens": [
            {"id": token, "text": text, "logprob": logprob}
            for token, text, logprob in zip(row.tokens, texts, row.logprobs, strict=True)
        ],
        "signals": row.signals,
        "labels": labels,
        "finish": row.finish,
        "message": row.message,
        "near_ties": [asdict(tie) for tie in row.near_ties],
        "counters": asdict(row.counters),
    }


def view_of(records: list[dict[str, Any]]) -> RenderableType:
    from rich.console import Group

    from otter_cli.reports.tokens import sparklines, text_lines, token_table

    parts: list[Any] = []
    for record in records:
        parts += [*text_lines(record), "", *sparklines(record)]
        if len(records) == 1:
            parts += ["", token_table(record), ""]
        parts += _cost(record)
        parts += [""] if len(records) > 1 else []
    return Group(*parts)


def _cost(record: dict[str, Any]) -> list[str]:
    """Passes and pace, of the whole batch; how the drafts fared, where there were any."""
    counters, count = record["counters"], len(record["tokens"])
    rate = count / max(counters["seconds"], 1e-9)
    lines = [f"{count} tokens in {counters['base_passes']} passes of the base, {rate:.1f} a second"]
    drafted = zip(counters["accepted"], counters["drafted"], strict=True)
    shares = [percent_text(kept / tried) for kept, tried in drafted if tried]
    return [*lines, f"drafts kept, by position: {', '.join(shares)}"] if shares else lines
