"""Preference pairs: to train a reward on, and to judge one by.

A training pair has two whole texts, chosen and rejected. A judged pair (RewardBench, HH) also has
its prompt and its section."""

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
    """`chosen` and `rejected` are whole texts; `prompt` is the beginning they share, if marked.
    `margin`: how much better, where the file says so."""

    chosen: str
    rejected: str
    prompt: str = ""
    margin: float | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What must not occur in both training and test data."""
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
    """Pairs of a table; with `prompt`, that column is put before both texts.

    OtterError, with file and line, for missing or empty columns, and for two equal texts unless
    `keep_equal`: for a caller that leaves these pairs out and counts them.
    """

    def parse(record: Record) -> PreferencePair:
        start = record.text(prompt) if prompt else ""
        better, worse = (_with_prompt(start, record.text(column)) for column in (chosen, rejected))
        if better == worse and not keep_equal:
            raise record.error(
                f"{chosen!r} and {rejected!r} are equal", "remove the row: it prefers nothing"
            )
        apart = record.number(margin, low=0.0) if margin else None
        return PreferencePair(better, worse, start or shared_dialogue(better, worse), apart)

    return read_rows(path, parse)


# Where more of the pairs are identical, what is left of the file says little.
_MOST_IDENTICAL = 0.5


def check_identical(identical: int, pairs: int, where: str, what: str = "pairs") -> None:
    """Tells how many pairs have the same tokens twice, and are left out. Raises OtterError where
    these are all, or more than half."""
    if not identical:
        return
    told = f"{where}: {identical} of {pairs} {what} are identical in the tokens that are read"
    if identical == pairs or identical > _MOST_IDENTICAL * pairs:
        raise OtterError(
            told,
            hint="their texts differ only in what is cut away, or in what the tokenizer makes the "
            "same: raise max_length, or shorten the texts",
        )
    warn(f"{told}, and are left out: they prefer nothing")


def _with_prompt(start: str, text: str) -> str:
    """A dialogue has its prompt already: its ids are those of the whole."""
    return text if isinstance(text, ChatText) else start + text


def shared_dialogue(one: str, other: str) -> str:
    """The turns two dialogues share, up to and with the last `Assistant:`; "" if there is none."""
    if isinstance(one, ChatText):
        return one.prompt
    common = one[: shared_length(one, other)]
    end = common.rfind(_ASSISTANT_TURN)
    return common[: end + len(_ASSISTANT_TURN)] if end >= 0 else ""


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many characters, or tokens, two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


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
    """`name` is its line; both texts go on from `prompt`. A `ChatText` has its prompt in it."""

    name: str
    prompt: str
    chosen: str
    rejected: str
    section: str


@dataclass(frozen=True)
class JudgedPairs:
    """The pairs of a table, its columns that are not read, and whether they are dialogues."""

    pairs: list[JudgedPair]
    ignored: list[str]
    chat: bool


def read_judged_pairs(
    path: str | TableLike, *, template: str = "{text}", tokenizer: Any = None, chat: bool = False
) -> JudgedPairs:
    """RewardBench (`prompt`, `chosen`, `rejected`, `subset`) and HH (`chosen`, `rejected`, whole
    dialogues), from jsonl or csv. The prompt may have any of its usual names. `template` holds
    {text} for a prompt that has a column.

    Messages are written by the tokenizer's chat template; with `chat` so are texts, as a user's
    and the assistant's.
    """
    place = Path(path) if isinstance(path, str) else path
    sample = sample_rows(place)
    column = pair_prompt("chosen", "rejected", sample)
    sides = ("chosen", "rejected")
    chat = chat or any(holds_messages(side, sample) for side in sides)
    if chat:
        place = ChatTable(place, tokenizer, sides, column)

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
        say(f"{place}: columns that are not read: {', '.join(map(repr, ignored))}")
    return JudgedPairs(read_rows(place, parse, at_least=1), ignored, chat)
