"""`otter graft`: plans an insertion, prices it, and writes the grafted folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.placed_files import Copy, PlacedFiles, placement_mode
from otter_cli.cli.tables import legend, plain_table
from otter_cli.core.dtype_names import DTYPE_HELP
from otter_cli.core.strict_config import DtypeName, StrictConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.graft.plan import Plan
    from otter_cli.graft.price import Price


app = verb_app()


def _option(panel: str, help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=panel)


class InsertionOptions(StrictConfig):
    """The sizes and the form of an insertion, as `plan_insertion` takes them. None: the default."""

    hidden: Annotated[int | None, _option("Size", "hidden units; 0: heads only")] = None
    heads: Annotated[int | None, _option("Size", "query heads per layer")] = None
    ffn: Annotated[int | None, _option("Size", "FFN units per layer")] = None
    kv_heads: Annotated[
        int | None, _option("Size", "key/value heads: own ones, or how many of the base's")
    ] = None
    layers: Annotated[str, _option("Size", "8:24, first:4, last:8, 3,5,7 or all")] = "all"
    kv: Annotated[str, _option("Form", "own keys and values, or the base's: own | base")] = "own"
    kv_start: Annotated[int, _option("Form", "the first of the base's heads to read")] = 0
    norm: Annotated[
        str, _option("Form", "the rms of the stream itself, or of the base: own | base")
    ] = "own"
    embedding: Annotated[str, _option("Form", "table | zeros")] = "table"
    init: Annotated[str, _option("Form", "copy | normal | random | zero-output")] = "copy"
    seed: Annotated[int, _option("Form", "seed of all random initial values")] = 0
    dtype: Annotated[DtypeName, _option("Form", f"dtype of the inserted tensors: {DTYPE_HELP}")] = (
        "float32"
    )


@verb(
    app,
    example="""\
    otter graft llama-base grafted
    otter graft llama-base grafted --hidden 32 --heads 1 --ffn 64 --signal reward --signal future:3
    otter graft org/name@main grafted --kv base --signal toxicity --dry-run""",
)
def graft(
    base: Annotated[
        str, typer.Argument(help="folder of the base, or a hub id: org/name, org/name@revision")
    ],
    out: Annotated[Path, typer.Argument(help="the grafted folder to write")],
    options: InsertionOptions,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            help="[NAME=]KIND[:ARG], repeatable: reward, action-reward, toxicity, classes:a,b, "
            "future:3 (future:3,512: of that width; future:3,plain: as in Medusa). Default: reward",
        ),
    ] = None,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            "--tensor-parallel",
            help="refuse sizes that cannot be split over this many ranks of vLLM",
            rich_help_panel="Size",
        ),
    ] = 1,
    name: Annotated[
        str | None, typer.Option("--name", help="name of the insertion. Default: main, then main-2")
    ] = None,
    copy: Copy = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the price only; write nothing")
    ] = False,
) -> Outcome:
    """Graft an insertion onto a base. The base's files stay unchanged; otter.* files are added.

    Default sizes are 1/16 of the base's. BASE may be a grafted folder: OUT then also holds its
    insertions, unchanged.
    """
    from otter_cli.checkpoint.base_source import find_base
    from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
    from otter_cli.core.errors import OtterError
    from otter_cli.families.shape import base_shape
    from otter_cli.graft.base_check import check_base, warn_about_base
    from otter_cli.graft.config import check_tensor_parallel
    from otter_cli.graft.plan import plan_insertion
    from otter_cli.graft.price import price
    from otter_cli.graft.surgery import graft as graft_base
    from otter_cli.graft.surgery import graft_onto

    if out.exists() and not dry_run:
        raise OtterError(f"{out} exists already", hint="choose another OUT, or remove it")
    source = find_base(base)
    # An adapter has a manifest too, but no base beside it.
    grafted = all((source.path / file).is_file() for file in (MANIFEST, "config.json"))
    checkpoint = Checkpoint.open(source.path, allow_otter=grafted)
    shape = base_shape(checkpoint.config)
    # The check comes before the plan: a configuration may claim more layers than a plan can hold.
    check_base(checkpoint, shape)
    warn_about_base(checkpoint, shape)
    name = name or _next_insertion_name(source.path if grafted else None)
    plan = plan_insertion(checkpoint, signal or ["reward"], name=name, **options.model_dump())
    if tensor_parallel != 1:
        check_tensor_parallel(plan.config, shape, tensor_parallel)
    cost = price(plan, checkpoint)
    if grafted and not dry_run:
        graft_onto(source.path, out, plan, mode=placement_mode(copy), checked=True)
    elif not dry_run:
        graft_base(
            checkpoint,
            out,
            plan,
            source=source.name,
            revision=source.revision,
            mode=placement_mode(copy),
            checked=True,
        )
    data = {
        "out": None if dry_run else out,
        "base": source.name,
        "revision": source.revision,
        "family": shape.family.model_type,
        "insertion": plan.config,
        "tensors": len(plan.tensors),
        **cost.record(),
    }
    written = ["dry run: nothing written"]
    if not dry_run:
        placed = PlacedFiles.find(source.path, checkpoint.files, out)
        data |= placed.record()
        files = "the unchanged files of the base, otter.safetensors, otter.json"
        written = [f"written to {out}: {files}", str(placed)]
    return Outcome(data, view=lambda: _view(plan, cost, written))


def _next_insertion_name(grafted: Path | None) -> str:
    """The default name of an insertion: `main`, or `main-N` in a folder that is grafted already."""
    from otter_cli.graft.manifest import Manifest

    count = len(Manifest.read(grafted).insertions) if grafted else 0
    return f"main-{count + 1}" if count else "main"


def _view(plan: Plan, cost: Price, written: list[str]) -> RenderableType:
    from rich.console import Group

    from otter_cli.core.formatting import bytes_text, count_text, percent_text

    table = plain_table("part", "parameters", "of the base", numeric=True)
    for part, count in cost.by_part.items():
        table.add_row(part, count_text(count), percent_text(count / cost.base_parameters))
    table.add_row(
        "all", count_text(cost.inserted_parameters), percent_text(cost.ratio), style="bold"
    )
    growth, base_cache = cost.inserted_cache_bytes_per_token, cost.base_cache_bytes_per_token
    share = f" ({percent_text(growth / base_cache)} more)" if base_cache else ""
    cache = f"{bytes_text(growth)} per token{share}" if growth else "no growth"
    vocabulary = [
        f"signal {name}: {count_text(work['all'])} multiply-adds to score every token, "
        f"{count_text(work['shared'])} + {count_text(work['token'])} for each candidate"
        for name, work in cost.vocabulary_work.items()
    ]
    drafts = [
        f"signal {name}: {count_text(work)} multiply-adds per draft"
        for name, work in cost.draft_work.items()
    ]
    lines = [
        *vocabulary,
        *drafts,
        f"stored in {plan.config.dtype}: {bytes_text(cost.inserted_bytes)}",
        f"KV cache: {cache}",
        f"loaded with the base: {bytes_text(cost.load_bytes)}",
        *written,
    ]
    return Group(table, legend(_PRICE_LEGEND), *lines)


_PRICE_LEGEND = (
    "part: what the parameters are for; parameters: how many are added (k thousand, M million); "
    "of the base: their share of the base's own"
)
