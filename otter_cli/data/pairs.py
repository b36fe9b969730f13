"""Preference pairs: for training a reward, and for judging one.

A training pair has two whole texts, chosen and rejected. A judged pair (RewardBench, HH) has its
prompt and its section too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.console import say, warn
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatTable, ChatText
from otter_cli.data.columns import holds_messages, ignored_columns, pair_prompt, sample_rows
from otter_cli.data.tables import Record, TableLike, read_rows

_ASSISTANT_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class PreferencePair:
    """`chosen` and `rejected` are whole texts. `prompt`: the beginning that they share, where it is
    marked. `margin`: how much better the chosen text is, where the file has it."""

    chosen: str
    rejected: str
    prompt: str = ""
    margin: float | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        return (self.prompt,) if self.prompt else (self.chosen, self.rejected)


def read_pairs(
    path: str | TableLike,
    *,
    chosen: str = "chosen",
    rejected: str = "rejected",
    prompt: str | None = None,
    margin: str | None = None,
    keep_equal: bool = False,
) -> list[PreferencePair]:
    """The pairs of a table. The column `prompt` is put before both texts.

    Raises OtterError, with file and line, for missing or empty columns; and for two equal texts,
    unless the caller leaves such pairs out itself (`keep_equal`).
    """

    def parse(record: Record) -> PreferencePair:
        start = record.text(prompt) if prompt else ""
        better, worse = (_with_prompt(start, record.text(column)) for column in (chosen, rejected))
        if better == worse and not keep_equal:
            raise record.error(
                f"{chosen!r} and {rejected!r} are equal", "remove the row: it prefers nothing"
            )
        distance = record.number(margin, low=0.0) if margin else None
        return PreferencePair(better, worse, start or shared_dialogue(better, worse), distance)

    return read_rows(path, parse)


# With a larger share of identical pairs a file is refused.
_MAX_IDENTICAL = 0.5


def check_identical(identical: int, pairs: int, where: str, what: str = "pairs") -> None:
    """Warns of pairs that have the same tokens twice, and are left out. Raises OtterError if they
    are all pairs, or more than half."""
    if not identical:
        return
    message = f"{where}: {identical} of {pairs} {what} are identical in the tokens that are read"
    if identical == pairs or identical > _MAX_IDENTICAL * pairs:
        raise OtterError(
            message,
            hint="their texts differ only in what is cut away, or in what the tokenizer makes the "
            "same: raise max_length, or shorten the texts",
        )
    warn(f"{message}, and are left out: they prefer nothing")


def _with_prompt(start: str, text: str) -> str:
    """A dialogue holds its prompt already, and has the ids of the whole."""
    return text if isinstance(text, ChatText) else start + text


def shared_dialogue(first: str, second: str) -> str:
    """The turns that two dialogues share, up to and with the last `Assistant:`; else ""."""
    if isinstance(first, ChatText):
        return first.prompt
    common = first[: shared_length(first, second)]
    end = common.rfind(_ASSISTANT_TURN)
    return common[: end + len(_ASSISTANT_TURN)] if end >= 0 else ""


def shared_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many characters, or tokens, two texts share at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


# Subsets of RewardBench by its own sections (arXiv 2403.13787, table 1).
_SECTIONS = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst "
    "llmbar-adver-GPTOut llmbar-adver-manual",
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond "
    "donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}
_SECTION_OF = {subset: name for name, subsets in _SECTIONS.items() for subset in subsets.split()}


@dataclass(frozen=True)
class JudgedPair:
    """`name` is its line. Both texts continue `prompt`; a `ChatText` holds the prompt."""

    name: str
    prompt: str
    chosen: str
    rejected: str
    section: str


@dataclass(frozen=True)
class JudgedPairs:
    """The pairs of a table, its columns that nothing reads, and whether the pairs are dialogues."""

    pairs: list[JudgedPair]
    ignored: list[str]
    chat: bool


def read_judged_pairs(
    path: str | TableLike, *, template: str = "{text}", tokenizer: Any = None, chat: bool = False
) -> JudgedPairs:
    """Reads RewardBench (`prompt`, `chosen`, `rejected`, `subset`) and HH (`chosen`, `rejected`:
    whole dialogues). The prompt may have any of its usual names. `template` holds {text}, for a
    prompt in a column.

    The tokenizer's chat template writes messages, and with `chat` also texts, as a user's and the
    assistant's. Raises OtterError.
    """
    table = Path(path) if isinstance(path, str) else path
    sample = sample_rows(table)
    column = pair_prompt("chosen", "rejected", sample)
    sides = ("chosen", "rejected")
    chat = chat or any(holds_messages(side, sample) for side in sides)
    if chat:
        table = ChatTable(table, tokenizer, sides, column)

    def parse(record: Record) -> JudgedPair:
        better, worse = record.text("chosen"), record.text("rejected")
        subset = str(record.values.get("subset", record.values.get("section", "")))
        if isinstance(better, ChatText):
            prompt = better.prompt
        elif column is not None:
            prompt = template.replace("{text}", record.text(column))
        else:
            prompt = shared_dialogue(better, worse)
            better, worse = better[len(prompt) :], worse[len(prompt) :]
        section = _SECTION_OF.get(subset, subset) or "all"
        return JudgedPair(str(record.line), prompt, better, worse, section)

    used = ["chosen", "rejected", "subset", "section", *([column] if column else [])]
    ignored = ignored_columns(sample, used)
    if ignored:
        say(f"{table}: columns that are not read: {', '.join(map(repr, ignored))}")
    return JudgedPairs(read_rows(table, parse, at_least=1), ignored, chat)
