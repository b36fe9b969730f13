"""What `otter generate` returns: a record of each text, the page that people see, streamed text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from otter_cli.cli.stdio import console
from otter_cli.core.formatting import percent_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.decoding.results import Generation, NearTie
    from otter_cli.model.otter import OtterForCausalLM


def signal_labels(model: OtterForCausalLM, shown: list[str]) -> dict[str, list[str]]:
    """What the several scores of a signal are called."""
    configs = [model.signal_configs[name] for name in shown]
    return {config.name: list(config.labels) for config in configs if config.size > 1}


class StreamPrinter:
    """Prints the text of one prompt as its tokens come."""

    def __init__(self, tokenizer: Any, prompt: str, ids: Sequence[int]) -> None:
        from otter_cli.decoding.results import IncrementalDetokenizer

        self.stream, self.special = (
            IncrementalDetokenizer(tokenizer, ids),
            set(tokenizer.all_special_ids),
        )
        self._print(prompt, style="dim")

    def __call__(self, row: int, token: int) -> None:
        text = self.stream.add(token)
        if token not in self.special:
            self._print(text)

    def end(self) -> None:
        self._print(self.stream.rest() + "\n")

    def _print(self, text: str, **style: Any) -> None:
        console().print(text, end="", soft_wrap=True, **style)
        sys.stdout.flush()


def text_record(
    prompt: str, ids: Sequence[int], row: Generation, tokenizer: Any, labels: dict[str, list[str]]
) -> dict[str, Any]:
    from otter_cli.decoding.results import token_texts
    from otter_cli.signals.finite import finite_or_none

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
        "signals": {name: finite_or_none(values) for name, values in row.signals.items()},
        "labels": labels,
        "finish": row.finish,
        "message": row.message,
        "near_ties": [_near_tie_record(tie, tokenizer) for tie in row.near_ties],
        "lossy": row.lossy,
        "counters": asdict(row.counters),
    }


def _near_tie_record(tie: NearTie, tokenizer: Any) -> dict[str, Any]:
    """Where two steps may part: what that of many tokens and that of one choose there."""

    def named(token: int | None) -> dict[str, Any] | None:
        return None if token is None else {"id": token, "text": tokenizer.decode([token])}

    return {
        "position": tie.position,
        "gap": tie.gap,
        "many_tokens": named(tie.best),
        "one_token": named(tie.one_token),
        "second": named(tie.second),
    }


def texts_view(records: list[dict[str, Any]]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from otter_cli.reports.terminal import sparklines, text_lines, token_table

    parts: list[Any] = []
    for record in records:
        parts += [*text_lines(record), "", *sparklines(record)]
        if len(records) == 1:
            parts += ["", token_table(record), ""]
        # As it is: a token may hold what rich takes for markup.
        parts += map(Text, _cost_lines(record))
        parts += [""] if len(records) > 1 else []
    return Group(*parts)


def _cost_lines(record: dict[str, Any]) -> list[str]:
    """Passes and pace, of the whole batch; how the drafts fared, where there were any."""
    counters, count = record["counters"], len(record["tokens"])
    rate = count / max(counters["seconds"], 1e-9)
    lines = [f"{count} tokens in {counters['base_passes']} passes of the base, {rate:.1f} a second"]
    if record["lossy"]:
        lines.append("typical acceptance is lossy: not a draw from the base's own distribution")
    for tie in record["near_ties"]:
        many, one = tie["many_tokens"]["text"], tie["one_token"]["text"]
        lines.append(
            f"near-tie at token {tie['position'] + 1}, {tie['gap']:.1e} apart: a step of many "
            f"tokens says {many!r}, one of a single token {one!r}"
        )
    drafted = zip(counters["accepted"], counters["drafted"], strict=True)
    shares = [percent_text(kept / tried) for kept, tried in drafted if tried]
    return [*lines, f"drafts kept, by position: {', '.join(shares)}"] if shares else lines
