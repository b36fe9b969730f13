"""Pairs to judge a reward by: prompt, the better and the worse answer, and a section."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.console import say
from otter_cli.data.chat import Chat
from otter_cli.data.chat_template import ChatText
from otter_cli.data.columns import holds_messages, ignored_columns, pair_prompt, sample_rows
from otter_cli.data.preference import shared_dialogue
from otter_cli.data.records import Place, Record, read_rows

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
    path: str | Place, *, template: str = "{text}", tokenizer: Any = None, chat: bool = False
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
        place = Chat(place, tokenizer, sides, column)

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
