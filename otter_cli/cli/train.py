"""`otter train`: trains the inserted tensors, or a baseline, by a recipe or on a data file.

A run ends with a verdict on the base, a model card and a table of held-out figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.data_options import DataOptions
from otter_cli.cli.tables import legend, plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.training.recipe import Recipe
    from otter_cli.training.run import RateSearch, TrainResult
    from otter_cli.verification.report import Verdict


app = verb_app()


def _baseline_option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Baselines")


@verb(
    app,
    example="""\
    otter train grafted --pairs my-pairs.jsonl
    otter train grafted --labels comments.csv --text comment --label toxic
    otter train grafted --teacher python:mymodule:score --prompts prompts.txt
    otter train grafted --recipe preference/paradetox
    otter train grafted --recipe my-recipe.yaml --resume
    otter train grafted --recipe my-recipe.yaml --baseline head --to head-only""",
    uses_graft=True,
    terms=("objectives", "baselines"),
    computes=True,
)
def train(
    folder: Annotated[Path, typer.Argument(help="the grafted folder")],
    options: DataOptions,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the last saved state, bit for bit")
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="drop an unfinished run, and train from the current tensors"
        ),
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE replaces a recipe's value, repeatable: steps=50"),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda (one for each process), cuda:1")
    ] = "cpu",
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="try rates from 1e-6 to 1 and suggest one; writes nothing"),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="afterwards prove over a grid that the base's logits are equal"
        ),
    ] = False,
    shard: Annotated[
        bool,
        typer.Option("--shard", help="split base and insertion over the processes of torchrun"),
    ] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="write curves to tensorboard, trackio or wandb too")
    ] = None,
    baseline: Annotated[
        str | None,
        _baseline_option(
            "--baseline",
            "head, probe, mha-probe, reward-channel, branch, lora, lora-probe, small, separate, "
            "wide or language-model",
        ),
    ] = None,
    to: Annotated[Path | None, _baseline_option("--to", "folder of the baseline")] = None,
    signal: Annotated[
        list[str] | None, _baseline_option("--signal", "train only this signal, repeatable")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="allow a Detoxify labeller to run the code in its file"
        ),
    ] = False,
) -> Outcome:
    """Train the signals of a graft. The base stays frozen, and the folder stays usable meanwhile.

    Give a data file, a teacher with prompts, or a recipe. Columns are found by their usual names
    (see `otter data check FILE`). Sizes and rates follow from the data and are printed. Metrics go
    to FOLDER/training/metrics.jsonl. Ctrl-C saves, and --resume continues. Several processes can
    share each batch: torchrun --nproc-per-node 2 -m otter_cli train ...
    """
    from otter_cli.cli.recipe_files import recipe_path
    from otter_cli.core.console import set_quiet
    from otter_cli.core.errors import OtterError
    from otter_cli.scorers.detoxify import pickle_allowed
    from otter_cli.training.distributed import is_first_process
    from otter_cli.training.recipe import BASELINE_NAMES, load_recipe
    from otter_cli.training.run import train as train_graft

    if not is_first_process():
        set_quiet(True)
    if baseline is not None and baseline not in BASELINE_NAMES:
        raise OtterError(
            f"there is no baseline {baseline!r}", hint=f"one of {', '.join(BASELINE_NAMES)}"
        )
    overrides = set or ()
    with pickle_allowed(allow_pickle):
        if options.recipe is not None:
            path: Path | None = recipe_path(options.recipe)
            recipe = load_recipe(str(path), overrides, data=options.data).only(signal or None)
        else:
            from otter_cli.cli.train_recipe import recipe_from_options

            path = options.save_recipe
            recipe = recipe_from_options(folder, options, overrides, signal, device)
        if find_lr:
            return _find_rate(folder, recipe, baseline, device)
        result = train_graft(
            folder,
            recipe,
            resume=resume,
            restart=restart,
            baseline=baseline,  # type: ignore[arg-type]
            to=to,
            device=device,
            log=log,
            shard=shard,
        )
    if not is_first_process():
        # Only the first process prints.
        raise typer.Exit

    verdict = _base_verdict(result.folder, static=not verify)
    card = _write_card(result, recipe, verdict)
    checked = {"verdict": verdict.name, "sentence": verdict.sentence} if verdict else None
    return Outcome(
        {**vars(result), "baseline": baseline, "recipe": path, "card": card, "verify": checked},
        view=lambda: _train_view(result, card, verdict),
        exit_code=0 if verdict is None or verdict.passes("grid") else 1,
    )


def _find_rate(folder: Path, recipe: Recipe, baseline: str | None, device: str) -> Outcome:
    from otter_cli.core.errors import OtterError
    from otter_cli.training.run import find_rate

    if baseline:
        raise OtterError("--find-lr tries rates of the graft itself", hint="leave --baseline out")
    search = find_rate(folder, recipe, device=device)
    return Outcome(vars(search), lambda: _rates_view(search))


CARD = Path("training", "card.md")


def _base_verdict(folder: Path, *, static: bool) -> Verdict | None:
    """The verdict on the base inside a graft, or None if the folder is no graft. With `static` it
    compares files only, and runs no model."""
    from otter_cli.checkpoint.folder import MANIFEST
    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify

    if not (folder / MANIFEST).is_file():
        return None
    return decide(verify(VerificationRequest(folder, static_only=static)))


def _write_card(result: TrainResult, recipe: Recipe, verdict: Verdict | None) -> Path:
    from otter_cli.core.atomic import write_text
    from otter_cli.reports.markdown import markdown_page
    from otter_cli.reports.model_card import model_card

    path = result.folder / CARD
    write_text(path, markdown_page(model_card(result, recipe, verdict)))
    return path


def _train_view(result: TrainResult, card: Path, verdict: Verdict | None) -> RenderableType:
    from rich.console import Group

    from otter_cli.core.formatting import count_text, seconds_text

    table = plain_table("signal", "held out", "mean", "95 % interval", "n")
    for name, figures in result.signals.items():
        for figure, value in figures.items():
            interval = f"{value.low:.4f} to {value.high:.4f}"
            table.add_row(name, figure, f"{value.mean:.4f}", interval, f"{value.n:,}")
    trained = count_text(result.trained_parameters)
    return Group(
        f"{result.folder}: {result.steps} steps, {seconds_text(result.seconds)}, "
        f"{trained} parameters trained",
        *([Group(table, legend(_HELD_OUT_LEGEND))] if result.signals else []),
        *([f"the base: {verdict.name}"] if verdict else []),
        f"model card: {card}",
    )


_HELD_OUT_LEGEND = (
    "held out: a metric on rows that training did not see (`otter explain auroc` and so on); "
    "mean: its value over them; 95 % interval: over these rows, not over seeds; n: how many rows"
)
_RATES_LEGEND = (
    "rate: the learning rate of a step; loss: smoothed over about ten steps; <: suggested"
)


def _rates_view(search: RateSearch) -> RenderableType:
    from rich.console import Group

    table = plain_table("rate", "loss", "")
    # Every third rate is enough to show the curve on one screen.
    for number, (rate, loss) in enumerate(zip(search.rates, search.losses, strict=True)):
        if number % 3 == 0 or rate == search.suggestion:
            table.add_row(f"{rate:.2e}", f"{loss:.4f}", "<" if rate == search.suggestion else "")
    return Group(
        table,
        legend(_RATES_LEGEND),
        f"the loss falls steepest at learning_rate: {search.suggestion:.1e}",
    )
