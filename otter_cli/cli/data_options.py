"""The options that name data: of `otter train`, and its columns of `otter data check` too.

`DataOptions` holds those of one call, and refuses combinations that do not go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.training.recipe_from_data import DataKind


DEFAULT_SAMPLES, DEFAULT_NEW_TOKENS = 4, 48


def _option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Data")


Pairs = Annotated[Path | None, _option("--pairs", "a file of prompt, chosen, rejected")]
Labels = Annotated[Path | None, _option("--labels", "a file of texts with labels")]
Texts = Annotated[Path | None, _option("--texts", "a file of texts, for future tokens")]
Teacher = Annotated[
    str | None,
    _option(
        "--teacher",
        "what labels the base's own texts: the folder of a classifier or reward model, "
        "org/name@revision, detoxify, python:module:function",
    ),
]
PromptFile = Annotated[Path | None, _option("--prompts", "with --teacher: what the base continues")]
TestFile = Annotated[
    Path | None, _option("--test", "a file like it to test on (default: a tenth is held out)")
]
TextColumn = Annotated[str | None, _option("--text", "column of texts (default: the usual names)")]
LabelColumns = Annotated[
    list[str] | None,
    _option("--label", "column of labels; with --teacher which of its scores; again for more"),
]
PromptColumn = Annotated[str | None, _option("--prompt", "column of prompts")]
ChosenColumn = Annotated[str | None, _option("--chosen", "column of the better answers")]
RejectedColumn = Annotated[str | None, _option("--rejected", "column of the worse answers")]
Raw = Annotated[bool, _option("--raw", "plain text, without the base's chat template")]
Samples = Annotated[int, _option("--samples", "with --teacher: texts for each prompt")]
NewTokens = Annotated[int, _option("--new-tokens", "with --teacher: tokens of a text")]
SaveRecipe = Annotated[
    Path | None, _option("--save-recipe", "write what was chosen as a recipe to edit")
]


@dataclass(frozen=True)
class DataOptions:
    """The data options of one call."""

    pairs: Path | None
    labels: Path | None
    texts: Path | None
    teacher: str | None
    prompts: Path | None
    test: Path | None
    text: str | None
    label: list[str] | None
    prompt: str | None
    chosen: str | None
    rejected: str | None
    raw: bool
    samples: int
    new_tokens: int

    @property
    def kind(self) -> DataKind:
        """What the data are. A teacher's texts have labels."""
        return "pairs" if self.pairs else "texts" if self.texts else "labels"

    def check(self, recipe: str | None) -> None:
        """Raises OtterError unless one source of data is given, with options that go with it."""
        sources = {
            "--recipe": recipe,
            "--pairs": self.pairs,
            "--labels": self.labels,
            "--texts": self.texts,
            "--teacher": self.teacher,
        }
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise OtterError(
                f"{' and '.join(given)} are given together" if given else "nothing to train on",
                hint=f"give one of {', '.join(sources)}",
            )
        if (self.teacher is None) != (self.prompts is None):
            raise OtterError(
                "--teacher and --prompts go together",
                hint="the base continues the prompts, and the teacher labels what it wrote",
            )
        fitting = {
            "--test": (self.test, ("--pairs", "--labels", "--texts")),
            "--text": (self.text, ("--labels", "--texts")),
            "--label": (self.label, ("--labels", "--teacher")),
            "--prompt": (self.prompt, ("--pairs", "--labels")),
            "--chosen": (self.chosen, ("--pairs",)),
            "--rejected": (self.rejected, ("--pairs",)),
            "--raw": (self.raw, tuple(sources)[1:]),
            "--samples": (self.samples != DEFAULT_SAMPLES, ("--teacher",)),
            "--new-tokens": (self.new_tokens != DEFAULT_NEW_TOKENS, ("--teacher",)),
        }
        for name, (value, with_) in fitting.items():
            if value and given[0] not in with_:
                raise OtterError(
                    f"{name} goes with {' or '.join(with_)}, not with {given[0]}",
                    hint="a recipe names its columns itself: --set signals.NAME.train.text=COLUMN",
                )
        for path in (self.pairs, self.labels, self.texts, self.prompts, self.test):
            if path is not None and not path.is_file():
                raise OtterError(f"{path} is not a file", hint="check the path")
