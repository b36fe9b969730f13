"""The options of `otter generate` and `otter chat`, each declared once as a field of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import model_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig

if TYPE_CHECKING:
    from typing import Self

    from otter_cli.decoding.sampling import Sampling


PROMPT_LOOKUP = "prompt-lookup"


def _option(panel: str, help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=panel)


MaxNewTokens = Annotated[int, _option("Sampling", "largest number of new tokens")]
Device = Annotated[str, _option("Speed", "cpu, cuda, cuda:1")]


class TextOptions(StrictConfig):
    """The options that `otter generate` and `otter chat` share."""

    folder: Annotated[Path, typer.Argument(help="the grafted folder")]
    base: Annotated[
        Path | None, typer.Option(help="the base, if FOLDER is an adapter without one")
    ] = None
    max_new_tokens: MaxNewTokens = 48
    temperature: Annotated[float, _option("Sampling", "0 is greedy")] = 0.0
    top_k: Annotated[int, _option("Sampling", "draw from the k most likely tokens; 0: all")] = 0
    top_p: Annotated[float, _option("Sampling", "probability of the nucleus; 1: all")] = 1.0
    seed: Annotated[int, _option("Sampling", "seed of all draws")] = 0
    guide: Annotated[
        tuple[str, ...],
        _option("Guidance", r"NAME\[/LABEL][:WEIGHT], repeatable: steer by a signal"),
    ] = ()
    strength: Annotated[
        float, _option("Guidance", "weight of a guide; negative steers away, 0 does nothing")
    ] = 1.0
    candidates: Annotated[int, _option("Guidance", "tokens that are scored at each step")] = 10

    @property
    def sampling(self) -> Sampling:
        from otter_cli.decoding.sampling import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def guides(self) -> list[tuple[str, float]]:
        """SIGNAL[/LABEL] and weight of each guide."""
        from otter_cli.decoding.guides.signal_guides import parse_guide

        return [parse_guide(text, self.strength) for text in self.guide]

    @model_validator(mode="after")
    def _check_before_loading(self) -> Self:
        """Raises OtterError for sampling settings and guides that are refused without a graft."""
        _ = self.sampling, self.guides
        return self


class GenerateOptions(TextOptions):
    """The options of `otter generate`. `chat` None: as the base has a chat template or none.
    `stream` None: for one prompt on a terminal. `details` None: on a terminal."""

    prompt: Annotated[
        str | None, typer.Argument(help="the prompt; - reads one prompt per line from stdin")
    ] = None
    file: Annotated[Path | None, typer.Option(help="a file of prompts: txt, jsonl, jsonl.gz")] = (
        None
    )
    signal: Annotated[
        tuple[str, ...],
        typer.Option(help="a signal to show, repeatable (default: all that score text)"),
    ] = ()
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="send the prompt as a message in the base's chat template, or as plain text "
            "(default: --chat if there is a template)",
        ),
    ] = None
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="show text while it is written, one prompt at a time (default: for one prompt on "
            "a terminal)",
        ),
    ] = None
    details: Annotated[
        bool | None,
        typer.Option(
            "--details/--no-details",
            help="show signals, a table of tokens and the cost beside the text (default: on a "
            "terminal, without --quiet)",
        ),
    ] = None
    stop: Annotated[tuple[str, ...], _option("Sampling", "end at this string, repeatable")] = ()
    reject: Annotated[
        tuple[str, ...],
        _option("Sampling", "end when a signal passes a bound, such as reward<0; repeatable"),
    ] = ()
    gate: Annotated[
        tuple[str, ...],
        _option("Guidance", "guide only where entropy>1.5, p<0.6, or SIGNAL>X; repeatable"),
    ] = ()
    label: Annotated[
        str | None, _option("Guidance", "label of the guiding signal (default: the first)")
    ] = None
    draft: Annotated[
        str | None,
        _option(
            "Speed",
            "draft by a future signal, prompt-lookup, or a smaller model's folder: the same text "
            "in fewer passes",
        ),
    ] = None
    tree: Annotated[
        str | None,
        _option(
            "Speed",
            "guesses per future head, as a tree: 3,2,1; or learnt:16, which measures the best "
            "tree of 16 tokens",
        ),
    ] = None
    typical: Annotated[
        bool, _option("Speed", "accept drafts that are likely enough: faster, but lossy")
    ] = False
    exact: Annotated[
        bool, _option("Speed", "decide near-ties of drafts by passes of one token")
    ] = False
    read_every: Annotated[
        int | None,
        _option("Speed", "read the signals of so many tokens at once (16; with --reject 1)"),
    ] = None
    batch: Annotated[int, _option("Speed", "prompts per batch")] = 8
    device: Device = "cpu"

    @property
    def draft_folder(self) -> Path | None:
        """The folder of the draft model, if --draft names one."""
        folder = Path(self.draft or "")
        return folder if self.draft and folder.is_dir() else None

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.batch < 1:
            raise OtterError(f"--batch is {self.batch}", hint="it must be at least 1")
        if "" in self.stop:
            raise OtterError(
                "--stop is empty, and an empty string ends every text at once",
                hint="give the string to end at",
            )
        by_heads = self.draft not in (None, PROMPT_LOOKUP) and not self.draft_folder
        if self.tree is not None and not by_heads:
            raise OtterError("--tree needs --draft with a future signal", hint="--draft future")
        if self.typical and self.draft is None:
            raise OtterError("--typical accepts drafts, and there are none", hint="--draft future")
        return self


class ChatOptions(TextOptions):
    """The options of `otter chat`."""

    signal: Annotated[
        str | None, typer.Option(help="the signal that colours tokens (default: the first)")
    ] = None
    system: Annotated[str | None, typer.Option(help="a system message, sent first")] = None
    max_new_tokens: MaxNewTokens = 256
    device: Device = "cpu"
