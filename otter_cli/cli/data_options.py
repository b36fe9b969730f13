"""The options that name training data: those of `otter train`, and columns of `otter data check`.

`DataOptions` refuses options that do not go together.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import model_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig

if TYPE_CHECKING:
    from typing import Self

    from otter_cli.training.recipe_from_data import DataKind


DEFAULT_SAMPLES, DEFAULT_NEW_TOKENS = 4, 48


def _option(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Data")


TextColumn = Annotated[str | None, _option("column of texts (default: a usual name)")]
PromptColumn = Annotated[str | None, _option("column of prompts")]
ChosenColumn = Annotated[str | None, _option("column of the better answers")]
RejectedColumn = Annotated[str | None, _option("column of the worse answers")]


class DataOptions(StrictConfig):
    """The data of one training run: a recipe, a data file, or a teacher with prompts."""

    recipe: Annotated[str | None, typer.Option(help="a file, or the name of a shipped recipe")] = (
        None
    )
    data: Annotated[
        Path | None, typer.Option(help="folder of the recipe's data files; default: the recipe's")
    ] = None
    pairs: Annotated[Path | None, _option("a file of prompt, chosen, rejected")] = None
    labels: Annotated[Path | None, _option("a file of texts with labels")] = None
    texts: Annotated[Path | None, _option("a file of texts, for future tokens")] = None
    teacher: Annotated[
        str | None,
        _option(
            "labels texts of the base: the folder of a classifier or reward model, "
            "org/name@revision, detoxify, python:module:function"
        ),
    ] = None
    prompts: Annotated[
        Path | None, _option("with --teacher: a file of prompts that the base continues")
    ] = None
    test: Annotated[
        Path | None, _option("a file of test data (default: a tenth of the data is held out)")
    ] = None
    text: TextColumn = None
    label: Annotated[
        tuple[str, ...],
        _option("column of labels, or with --teacher one of its scores; repeatable"),
    ] = ()
    map: Annotated[
        tuple[str, ...],
        _option(
            "VALUE=NUMBER, repeatable: what a word in the label column stands for, from 0 to 1"
        ),
    ] = ()
    prompt: PromptColumn = None
    chosen: ChosenColumn = None
    rejected: RejectedColumn = None
    raw: Annotated[bool, _option("plain text, without the base's chat template")] = False
    samples: Annotated[int, _option("with --teacher: texts per prompt")] = DEFAULT_SAMPLES
    new_tokens: Annotated[int, _option("with --teacher: tokens per text")] = DEFAULT_NEW_TOKENS
    save_recipe: Annotated[
        Path | None, _option("write the recipe that is made from the data to this file")
    ] = None

    @property
    def kind(self) -> DataKind:
        """The kind of the data. A teacher's texts have labels."""
        return "pairs" if self.pairs else "texts" if self.texts else "labels"

    @property
    def mapping(self) -> dict[str, float]:
        """The numbers of --map by value. Raises OtterError."""
        mapping = {}
        for text in self.map:
            value, equals, number = text.rpartition("=")
            try:
                mapping[value] = float(number)
            except ValueError:
                equals = ""
            if not equals:
                raise OtterError(f"--map {text!r} is no VALUE=NUMBER", hint="such as --map spam=1")
        return mapping

    @property
    def file(self) -> Path | None:
        """The data file, or None with a recipe or a teacher."""
        return self.pairs or self.labels or self.texts

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        sources = {
            "--recipe": self.recipe,
            "--pairs": self.pairs,
            "--labels": self.labels,
            "--texts": self.texts,
            "--teacher": self.teacher,
        }
        used = [name for name, value in sources.items() if value is not None]
        if len(used) != 1:
            raise OtterError(
                f"{' and '.join(used)} are given together" if used else "nothing to train on",
                hint=f"give one of {', '.join(sources)}",
            )
        if (self.teacher is None) != (self.prompts is None):
            raise OtterError(
                "--teacher and --prompts go together",
                hint="the base continues the prompts, and the teacher labels the texts",
            )
        if self.recipe is not None and self.save_recipe is not None:
            raise OtterError(
                "--save-recipe goes with a data file, not with --recipe",
                hint="otter recipes show NAME prints a recipe that ships",
            )
        if self.recipe is None and self.data is not None:
            raise OtterError(
                "--data goes with --recipe", hint="give the path of the data file itself"
            )
        self._check_source_options(used[0], tuple(sources)[1:])
        for path in (self.pairs, self.labels, self.texts, self.prompts, self.test):
            if path is not None and not path.is_file():
                raise OtterError(f"{path} is not a file", hint="check the path")
        return self

    def _check_source_options(self, source: str, data_sources: tuple[str, ...]) -> None:
        """Raises OtterError for an option that does not go with the source of the data."""
        allowed_sources = {
            "--test": (self.test, ("--pairs", "--labels", "--texts")),
            "--text": (self.text, ("--labels", "--texts")),
            "--label": (self.label, ("--labels", "--teacher")),
            "--map": (self.map, ("--labels",)),
            "--prompt": (self.prompt, ("--pairs", "--labels")),
            "--chosen": (self.chosen, ("--pairs",)),
            "--rejected": (self.rejected, ("--pairs",)),
            "--raw": (self.raw, data_sources),
            "--samples": (self.samples != DEFAULT_SAMPLES, ("--teacher",)),
            "--new-tokens": (self.new_tokens != DEFAULT_NEW_TOKENS, ("--teacher",)),
        }
        for name, (value, allowed) in allowed_sources.items():
            if value and source not in allowed:
                raise OtterError(
                    f"{name} goes with {' or '.join(allowed)}, not with {source}",
                    hint="a recipe names its columns itself: --set signals.NAME.train.text=COLUMN",
                )
