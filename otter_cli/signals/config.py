"""The configuration of a signal, and its form on the command line: [NAME=]KIND[:ARG]."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import Field

from otter_cli.core.errors import OtterError, did_you_mean
from otter_cli.core.strict_config import StrictConfig

KIND_ALIASES = {"reward": "value", "action-reward": "vocabulary", "toxicity": "classes"}
SIGNAL_KINDS = ("value", "vocabulary", "classes", "future")
_DEFAULT_SIZES = {"future": 3, "vocabulary": 64}  # other kinds have one output
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class SignalConfig(StrictConfig):
    """A named signal.

    `size` is the number of attributes, of classes or of future tokens (t+2 ... t+size+1), or the
    rank of action values (0 is full). `width` is that of a future signal's cell, which reads the
    tokens already drafted. None is twice the base's hidden size. 0, the value of older files, is no
    cell: each head guesses alone.
    """

    name: str = Field(pattern=f"^{_NAME.pattern}$")
    kind: str = Field(pattern=f"^({'|'.join(SIGNAL_KINDS)})$")
    size: int = Field(default=1, ge=0, le=4096)
    labels: tuple[str, ...] = ()
    width: int | None = Field(default=0, ge=0, le=65536)


def unknown_signal(name: str, known: Iterable[str]) -> OtterError:
    names = list(known)
    return OtterError(
        f"there is no signal {name!r} in this graft",
        hint=did_you_mean(name, names) + f"its signals: {', '.join(names) or 'none'}",
    )


def parse_signal(text: str) -> SignalConfig:
    """The signal that `text` describes, such as `reward`, `toxicity`, `future:3`, `future:3,plain`,
    `classes:a,b,c`, `polite=value` or `action-reward:full`. Raises OtterError otherwise."""
    head, _, argument = text.partition(":")
    name, separator, kind = head.partition("=")
    kind_text = kind if separator else name
    kind = KIND_ALIASES.get(kind_text, kind_text)
    if kind not in SIGNAL_KINDS:
        known = (*SIGNAL_KINDS, *KIND_ALIASES)
        raise OtterError(
            f"signal {text!r}: there is no kind {kind_text!r}",
            hint=did_you_mean(kind_text, known) + "kinds: " + ", ".join(known),
        )
    if not _NAME.fullmatch(name):
        raise OtterError(
            f"signal {text!r}: {name!r} is no name",
            hint="use small letters, digits, - and _, beginning with a letter",
        )
    width: int | None = 0
    if kind == "future":
        argument, _, form = argument.partition(",")
        width = _parse_cell_width(text, form)
    size, labels = _parse_argument(text, kind, argument)
    # `toxicity` is a single class of that name.
    if kind == "classes" and not labels:
        labels = (name,) if size == 1 else tuple(f"class_{i}" for i in range(size))
    return SignalConfig(name=name, kind=kind, size=size, labels=labels, width=width)


def _parse_cell_width(text: str, form: str) -> int | None:
    """The cell's width in `future:3,512`, 0 in `future:3,plain`, None where it is left out."""
    if not form:
        return None
    if form.isdigit() and 1 <= int(form) <= 65536:
        return int(form)
    if form == "plain":
        return 0
    raise OtterError(
        f"signal {text!r}: cannot read {form!r}",
        hint="give the width of its cell (future:3,512), or plain for heads like Medusa's "
        "(future:3,plain)",
    )


def _parse_argument(text: str, kind: str, argument: str) -> tuple[int, tuple[str, ...]]:
    """Size and labels."""
    if not argument:
        return _DEFAULT_SIZES.get(kind, 1), ()
    if kind == "vocabulary" and argument == "full":
        return 0, ()
    if argument.isdigit():
        if not 1 <= int(argument) <= 4096:
            raise OtterError(
                f"signal {text!r}: {argument} is not from 1 to 4096", hint="for example future:3"
            )
        return int(argument), ()
    labels = tuple(label.strip() for label in argument.split(","))
    if (
        kind in ("future", "vocabulary")
        or not all(_NAME.fullmatch(label) for label in labels)
        or len(set(labels)) < len(labels)
    ):
        raise OtterError(
            f"signal {text!r}: cannot read {argument!r}",
            hint="give a number (future:3), distinct names (classes:toxicity,insult), or a rank or "
            "full (vocabulary:full)",
        )
    return len(labels), labels
