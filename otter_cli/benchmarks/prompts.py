"""Prompts as every method gets them: the same tokens, cut from the left where they do not fit.

The records say which prompts a run used, and which lines a limit drew."""

from dataclasses import dataclass
from typing import Any

from otter_cli.benchmarks.options import PromptFile
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictRecord
from otter_cli.data.chat_template import Messages, messages_of
from otter_cli.data.encoding import Encoder
from otter_cli.data.prompts import draw_prompts
from otter_cli.data.splits import RowDraw


class RowDrawRecord(StrictRecord):
    """The lines that a limit kept of a file's `of` lines, drawn by `seed` across categories. For
    texts of pairs and held-out rows: their places, from 1."""

    seed: int
    of: int
    lines: list[int]


class PromptsRecord(StrictRecord):
    """Which prompts a run used. `digest`: of their texts and tokens. `truncated`: how many were cut
    to fit. `drawn`: the lines that a limit kept."""

    file: str
    digest: str
    count: int
    truncated: int
    drawn: RowDrawRecord | None = None


@dataclass(frozen=True)
class BenchPrompt:
    """A prompt. `name`: its line in the file. `offends_by`: for a labelled text, the tokens up to
    the end of its offending span, 0 for a clean text. `messages`: the dialogue to answer."""

    name: str
    text: str
    tokens: tuple[int, ...]
    category: str = ""
    offends_by: int = 0
    messages: Messages = ()


def load_prompts(
    file: PromptFile, tokenizer: Any, *, positions: int, new_tokens: int
) -> tuple[list[BenchPrompt], PromptsRecord]:
    """Prompts that leave room for `new_tokens` in the base's `positions`. Raises OtterError."""
    # Scorers append an EOS, which needs one more position.
    room = positions - new_tokens - 1
    if room < 3:
        raise OtterError(
            f"{new_tokens} new tokens leave no room for a prompt in the base's {positions} "
            "positions",
            hint="lower --max-new-tokens",
        )
    drawn = draw_prompts(
        file.prompts,
        column=file.column,
        template=file.template,
        limit=file.limit,
        seed=file.limit_seed,
    )
    rows = drawn.rows
    texts = [row.written(tokenizer, file.chat, file.prompts) for row in rows]
    encoded = Encoder(tokenizer, room, eos=False)(texts, "prompt")
    if encoded.truncation.cut:
        warn(f"{encoded.truncation.cut} of {len(rows)} prompts are cut to their last {room} tokens")
    prompts = [
        BenchPrompt(str(row.line), str(text), tuple(ids), row.category, messages=messages_of(text))
        for row, text, ids in zip(rows, texts, encoded.ids, strict=True)
    ]
    record = PromptsRecord(
        file=file.prompts.name,
        digest=sha256_json([[p.name, p.text, p.tokens] for p in prompts]),
        count=len(prompts),
        truncated=encoded.truncation.cut,
        drawn=row_draw_record(drawn.drawn),
    )
    return prompts, record


def row_draw_record(drawn: RowDraw | None) -> RowDrawRecord | None:
    """The record of a draw; None where nothing was left out."""
    if drawn is None or drawn.is_complete:
        return None
    return RowDrawRecord(seed=drawn.seed, of=drawn.total, lines=list(drawn.lines))
