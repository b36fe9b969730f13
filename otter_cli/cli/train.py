"""`otter train`: trains the inserted tensors, or a baseline for them, by a recipe.

A run ends with a verdict on the base, a model card and a table of held-out figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli import data_options as d
from otter_cli.cli.command import Outcome, verb, verb_app

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
)
def train(
    folder: Annotated[Path, typer.Argument(help="the grafted folder")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="a file, or a recipe that ships")
    ] = None,
    pairs: d.Pairs = None,
    labels: d.Labels = None,
    texts: d.Texts = None,
    teacher: d.Teacher = None,
    prompts: d.PromptFile = None,
    test: d.TestFile = None,
    text: d.TextColumn = None,
    label: d.LabelColumns = None,
    prompt: d.PromptColumn = None,
    chosen: d.ChosenColumn = None,
    rejected: d.RejectedColumn = None,
    raw: d.Raw = False,
    samples: d.Samples = d.DEFAULT_SAMPLES,
    new_tokens: d.NewTokens = d.DEFAULT_NEW_TOKENS,
    save_recipe: d.SaveRecipe = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last saved state, bit for bit")
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="drop an unfinished run; train the tensors as they are"),
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the recipe's, again for more: steps=50"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="folder of its data files; default: the recipe's")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda (of each process its own), cuda:1")
    ] = "cpu",
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="try rates from 1e-6 to 1 and suggest one; writes none"),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="afterwards prove, over a grid, that the base is itself"),
    ] = False,
    shard: Annotated[
        bool,
        typer.Option("--shard", help="each process of torchrun holds a part of base and insertion"),
    ] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="curves too: tensorboard, trackio or wandb")
    ] = None,
    baseline: Annotated[
        str | None,
        _baseline_option(
            "--baseline",
            "head, probe, branch, lora, lora-probe, small, separate, wide or language-model",
        ),
    ] = None,
    to: Annotated[Path | None, _baseline_option("--to", "folder of the baseline")] = None,
    signal: Annotated[
        list[str] | None, _baseline_option("--signal", "only these of the recipe's signals")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="a Detoxify labeller whose file holds code may run that code"
        ),
    ] = False,
) -> Outcome:
    """Train the signals of a graft: the base stays frozen, the folder is usable at any time.

    Give a data file, or a teacher with prompts, or a recipe. Columns are found by their usual names
    (`otter data check FILE` shows which); sizes and rates follow from the data, and are printed.
    Metrics go to FOLDER/training/metrics.jsonl; Ctrl-C saves, and --resume goes on. Several
    processes share each batch: torchrun --nproc-per-node 2 -m otter_cli train ...
    """
    from otter_cli.cli.recipe_files import recipe_path
    from otter_cli.core.console import set_quiet
    from otter_cli.core.errors import OtterError
    from otter_cli.scorers.detoxify import pickle_allowed
    from otter_cli.training.distributed import is_first_process
    from otter_cli.training.recipe import BASELINE_NAMES

    if not is_first_process():
        set_quiet(True)
    if baseline is not None and baseline not in BASELINE_NAMES:
        raise OtterError(
            f"there is no baseline {baseline!r}", hint=f"one of {', '.join(BASELINE_NAMES)}"
        )
    given = d.DataOptions(
        pairs, labels, texts, teacher, prompts, test, text, label, prompt, chosen, rejected, raw,
        samples, new_tokens,
    )  # fmt: skip
    given.check(recipe)
    if recipe is not None and save_recipe is not None:
        raise OtterError(
            "--save-recipe goes with a data file, not with --recipe",
            hint="otter recipes show NAME prints a recipe that ships",
        )
    if recipe is None and data is not None:
        raise OtterError("--data goes with --recipe", hint="give the path of the data file itself")
    from otter_cli.training.recipe import load_recipe
    from otter_cli.training.run import train as run

    with pickle_allowed(allow_pickle):
        if recipe is not None:
            path: Path | None = recipe_path(recipe)
            loaded = load_recipe(str(path), set or (), data=data).only(signal or None)
        else:
            from otter_cli.cli.train_recipe import recipe_from_options

            path = save_recipe
            loaded = recipe_from_options(folder, given, set or (), signal, device, save_recipe)
        if find_lr:
            return _find_rate(folder, loaded, baseline, device)
        result = run(
            folder,
            loaded,
            resume=resume,
            restart=restart,
            baseline=baseline,  # type: ignore[arg-type]
            to=to,
            device=device,
            log=log,
            shard=shard,
        )
    if not is_first_process():
        # The first process speaks for all.
        raise typer.Exit

    verdict = _base_verdict(result.folder, static=not verify)
    card = _write_card(result, loaded, verdict)
    told = {"verdict": verdict.name, "sentence": verdict.sentence} if verdict else None
    return Outcome(
        {**vars(result), "baseline": baseline, "recipe": path, "card": card, "verify": told},
        view=lambda: _train_view(result, card, verdict),
        exit_code=0 if verdict is None or verdict.passes("grid") else 1,
    )


def _find_rate(folder: Path, recipe: Recipe, baseline: str | None, device: str) -> Outcome:
    from otter_cli.core.errors import OtterError
    from otter_cli.training.run import find_rate

    if baseline:
        raise OtterError("--find-lr is of the graft's own rate", hint="leave --baseline out")
    found = find_rate(folder, recipe, device=device)

    def view() -> RenderableType:

        return _rates_view(found)

    return Outcome(vars(found), view)


CARD = Path("training", "card.md")


def _base_verdict(folder: Path, *, static: bool) -> Verdict | None:
    """Of the base within the folder: its files, or what it says too. None where there is none."""
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
    from rich.table import Table

    from otter_cli.core.formatting import count_text, seconds_text

    table = Table(
        "signal", "held out", "mean", "95 % interval", "n", box=None, header_style="bold",
        pad_edge=False,
    )  # fmt: skip
    for name, figures in result.signals.items():
        for what, value in figures.items():
            low_high = f"{value.low:.4f} to {value.high:.4f}"
            table.add_row(name, what, f"{value.mean:.4f}", low_high, f"{value.n:,}")
    trained = count_text(result.trained_parameters)
    return Group(
        f"{result.folder}: {result.steps} steps, {seconds_text(result.seconds)}, "
        f"{trained} parameters trained",
        *([table] if result.signals else []),
        *([f"the base: {verdict.name}"] if verdict else []),
        f"model card: {card}",
    )


def _rates_view(found: RateSearch) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table("rate", "loss", "", box=None, header_style="bold", pad_edge=False)
    # Every third of them shows the curve as well, on one screen.
    for number, (rate, loss) in enumerate(zip(found.rates, found.losses, strict=True)):
        if number % 3 == 0 or rate == found.suggestion:
            table.add_row(f"{rate:.2e}", f"{loss:.4f}", "<" if rate == found.suggestion else "")
    return Group(table, f"the loss falls steepest at learning_rate: {found.suggestion:.1e}")
