"""Preference pairs: two texts, one of them better."""

from collections.abc import Sequence
from dataclasses import dataclass

from otter_cli.core.console import warn
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.records import Place, Record, read_rows

_ANSWER = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
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
    path: str | Place,
    *,
    chosen: str = "chosen",
    rejected: str = "rejected",
    prompt: str | None = None,
    margin: str | None = None,
    keep_equal: bool = False,
) -> list[Pair]:
    """Pairs of a table; with `prompt`, that column is put before both texts.

    OtterError, with file and line, for missing or empty columns, and for two equal texts unless
    `keep_equal`: for a caller that leaves these pairs out and counts them.
    """

    def parse(record: Record) -> Pair:
        start = record.text(prompt) if prompt else ""
        better, worse = (_whole(start, record.text(column)) for column in (chosen, rejected))
        if better == worse and not keep_equal:
            raise record.error(
                f"{chosen!r} and {rejected!r} are equal", "remove the row: it prefers nothing"
            )
        apart = record.number(margin, low=0.0) if margin else None
        return Pair(better, worse, start or shared_dialogue(better, worse), apart)

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


def _whole(start: str, text: str) -> str:
    """A dialogue has its prompt already: its ids are those of the whole."""
    return text if isinstance(text, ChatText) else start + text


def shared_dialogue(one: str, other: str) -> str:
    """The turns two dialogues share, up to and with the last `Assistant:`; "" if there is none."""
    if isinstance(one, ChatText):
        return one.prompt
    common = one[: shared_length(one, other)]
    end = common.rfind(_ANSWER)
    return common[: end + len(_ANSWER)] if end >= 0 else ""


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many characters, or tokens, two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
