"""The output of `otter generate`: a record of each text, a page for people, and streamed text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from otter_cli.cli.stdio import console
from otter_cli.cli.tables import legend
from otter_cli.core.formatting import percent_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.decoding.results import Generation, NearTie


class StreamPrinter:
    """Prints the text of one prompt token by token. `shown` stands before it: the prompt, or
    nothing where stdout gets the text alone."""

    def __init__(self, tokenizer: Any, shown: str, ids: Sequence[int]) -> None:
        from otter_cli.data.chat_template import special_ids
        from otter_cli.decoding.results import IncrementalDetokenizer

        self.stream = IncrementalDetokenizer(tokenizer, ids)
        self.special = special_ids(tokenizer)
        self._print(shown, style="dim")

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
    """A generated text as --json prints it. `ids` are the tokens of the prompt."""
    from otter_cli.api.generated_text import to_generated_text
    from otter_cli.data.chat_template import special_ids

    text = to_generated_text(tokenizer, ids, row, labels)
    special = special_ids(tokenizer)
    tokens = zip(text.token_ids, text.tokens, row.logprobs, strict=True)
    return {
        "prompt": prompt,
        "text": text.text,
        "tokens": [
            {"id": id, "text": part, "logprob": logprob, "special": id in special}
            for id, part, logprob in tokens
        ],
        "signals": text.signal_record(),
        "labels": labels,
        "finish": text.finish,
        "message": text.message,
        "near_ties": [_near_tie_record(tie, tokenizer) for tie in row.near_ties],
        "lossy": row.lossy,
        "counters": asdict(row.counters),
    }


def _near_tie_record(tie: NearTie, tokenizer: Any) -> dict[str, Any]:
    """A position where a pass of many tokens and a pass of one may choose different tokens."""

    def token_record(token: int | None) -> dict[str, Any] | None:
        return None if token is None else {"id": token, "text": tokenizer.decode([token])}

    return {
        "position": tie.position,
        "gap": tie.gap,
        "many_tokens": token_record(tie.best),
        "one_token": token_record(tie.one_token),
        "second": token_record(tie.second),
    }


def plain_texts(records: list[dict[str, Any]]) -> str:
    """The new texts alone, without special tokens. Empty where they were streamed already."""
    return "\n".join(record["text"] for record in records if not record["streamed"])


def texts_view(records: list[dict[str, Any]]) -> RenderableType:
    """The texts with their signals as sparklines. One text also gets a table of its tokens."""
    from rich.console import Group
    from rich.text import Text

    from otter_cli.reports.terminal import sparklines, text_lines, token_table

    parts: list[Any] = []
    for record in records:
        parts += [*text_lines(record), "", *sparklines(record)]
        if len(records) == 1:
            parts += ["", token_table(record), legend(_TOKENS_LEGEND), ""]
        parts += map(Text, _cost_lines(record))
        parts += [""] if len(records) > 1 else []
    return Group(*parts)


_TOKENS_LEGEND = (
    "logprob: natural logarithm of the base's probability of the token; other columns: the signal "
    "after it. In a line of bars, the numbers are its lowest and highest value."
)


def _cost_lines(record: dict[str, Any]) -> list[str]:
    """Passes and speed of the whole batch, near-ties, and the share of drafts that was kept."""
    counters, count = record["counters"], len(record["tokens"])
    rate = count / max(counters["seconds"], 1e-9)
    lines = [
        f"{count} tokens in {counters['base_passes']} passes of the base, {rate:.1f} per second"
    ]
    if record["lossy"]:
        lines.append(
            "typical acceptance is lossy: the text does not follow the base's distribution"
        )
    for tie in record["near_ties"]:
        many, one = tie["many_tokens"]["text"], tie["one_token"]["text"]
        lines.append(
            f"near-tie at token {tie['position'] + 1}, gap {tie['gap']:.1e}: a pass of many tokens "
            f"chooses {many!r}, a pass of one token {one!r}"
        )
    drafted = zip(counters["accepted"], counters["drafted"], strict=True)
    shares = [percent_text(kept / proposed) for kept, proposed in drafted if proposed]
    return [*lines, f"drafts kept, by position: {', '.join(shares)}"] if shares else lines
