"""`otter graft`: plans an insertion, prices it, and writes the grafted folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.placed_files import placed_files_record, placed_files_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.checkpoint.link_or_copy import PlacementMode
    from otter_cli.graft.plan import Plan
    from otter_cli.graft.price import Price


app = verb_app()


def _size_option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Size")


def _form_option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Form")


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
    signal: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            help="[NAME=]KIND[:ARG], again for more: reward, action-reward, toxicity, classes:a,b, "
            "future:3 (future:3,512: of that width; future:3,plain: Medusa's). Default: reward",
        ),
    ] = None,
    hidden: Annotated[
        int | None, _size_option("--hidden", "inserted hidden units; 0: heads only")
    ] = None,
    heads: Annotated[int | None, _size_option("--heads", "inserted query heads a layer")] = None,
    ffn: Annotated[int | None, _size_option("--ffn", "inserted FFN units a layer")] = None,
    kv_heads: Annotated[
        int | None,
        _size_option("--kv-heads", "key/value heads: own ones, or how many of the base's"),
    ] = None,
    layers: Annotated[str, _size_option("--layers", "8:24, first:4, last:8, 3,5,7 or all")] = "all",
    kv: Annotated[
        str, _form_option("--kv", "own keys and values, or the base's: own | base")
    ] = "own",
    kv_start: Annotated[int, _form_option("--kv-start", "first of the base's heads to read")] = 0,
    norm: Annotated[
        str, _form_option("--norm", "rms of the stream itself, or of the base's: own | base")
    ] = "own",
    embedding: Annotated[str, _form_option("--embedding", "table | zeros")] = "table",
    init: Annotated[str, _form_option("--init", "copy | normal | random | zero-output")] = "copy",
    seed: Annotated[int, _form_option("--seed", "of every random first value")] = 0,
    tensor_parallel: Annotated[
        int,
        _size_option("--tensor-parallel", "refuse sizes that so many ranks of vLLM do not share"),
    ] = 1,
    dtype: Annotated[
        str, _form_option("--dtype", "of the stored tensors: F32 | BF16 | F16")
    ] = "F32",
    name: Annotated[
        str | None, typer.Option("--name", help="of the insertion. Default: main, then main-2")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="copy the base's weights, rather than hard-link them")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="price only; write nothing")] = False,
) -> Outcome:
    """Graft an insertion onto a base: its files stay byte for byte, otter.* comes beside them.

    Left out, every size is a sixteenth of the base's. BASE may be a grafted folder: OUT then holds
    its insertions too, as they are.
    """
    from otter_cli.checkpoint.base_source import find_base
    from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
    from otter_cli.core.errors import OtterError
    from otter_cli.families.shape import base_shape
    from otter_cli.graft.base_check import check_base, warn_about_base
    from otter_cli.graft.config import check_tensor_parallel
    from otter_cli.graft.plan import plan_insertion
    from otter_cli.graft.price import price
    from otter_cli.graft.surgery import graft as write
    from otter_cli.graft.surgery import graft_onto

    if out.exists() and not dry_run:
        raise OtterError(f"{out} exists already", hint="choose another OUT, or remove it")
    source = find_base(base)
    # An adapter has a manifest too, but no base beside it.
    grafted = all((source.path / name).is_file() for name in (MANIFEST, "config.json"))
    checkpoint = Checkpoint.open(source.path, allow_otter=grafted)
    shape = base_shape(checkpoint.config)
    # Before a plan is made: a configuration may claim more layers than a plan can hold.
    check_base(checkpoint, shape)
    warn_about_base(checkpoint, shape)
    plan = plan_insertion(
        checkpoint,
        signal or ["reward"],
        hidden=hidden,
        heads=heads,
        ffn=ffn,
        kv_heads=kv_heads,
        layers=layers,
        kv=kv,
        kv_start=kv_start,
        norm=norm,
        embedding=embedding,
        init=init,
        seed=seed,
        dtype=dtype,
        name=name or _next_insertion_name(source.path if grafted else None),
    )
    if tensor_parallel != 1:
        check_tensor_parallel(plan.config, shape, tensor_parallel)
    cost = price(plan, checkpoint)
    mode: PlacementMode = "copy" if copy else "link"
    if grafted and not dry_run:
        graft_onto(source.path, out, plan, mode=mode, checked=True)
    elif not dry_run:
        write(
            checkpoint,
            out,
            plan,
            source=source.name,
            revision=source.revision,
            mode=mode,
            checked=True,
        )
    files = {} if dry_run else placed_files_record(source.path, checkpoint.files, out)
    data = {
        "out": None if dry_run else out,
        "base": source.name,
        "revision": source.revision,
        "family": shape.family.model_type,
        "insertion": plan.config,
        "tensors": len(plan.tensors),
        **cost.record(),
        **files,
    }
    line = placed_files_text(files, source.path) if files else ""
    return Outcome(data, view=lambda: _view(plan, cost, None if dry_run else out, line))


def _next_insertion_name(grafted: Path | None) -> str:
    """What an insertion is called that nobody named: by how many there are."""
    from otter_cli.graft.manifest import Manifest

    others = len(Manifest.read(grafted).insertions) if grafted else 0
    return f"main-{others + 1}" if others else "main"


def _view(plan: Plan, cost: Price, out: Path | None, placed: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    from otter_cli.core.formatting import bytes_text, count_text, percent_text

    table = Table(
        "part", "parameters", "of the base", box=None, header_style="bold", pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for part, count in cost.by_part.items():
        table.add_row(part, count_text(count), percent_text(count / cost.base_parameters))
    table.add_row(
        "all", count_text(cost.inserted_parameters), percent_text(cost.ratio), style="bold"
    )
    growth, before = cost.inserted_cache_bytes_per_token, cost.base_cache_bytes_per_token
    more = f" ({percent_text(growth / before)} more)" if before else ""
    cache = f"{bytes_text(growth)} a token{more}"
    vocabulary = [
        f"signal {name}: {count_text(work['all'])} multiply-adds to score every token, "
        f"{count_text(work['shared'])} + {count_text(work['token'])} for each candidate"
        for name, work in cost.vocabulary_work.items()
    ]
    drafts = [
        f"signal {name}: {count_text(work)} multiply-adds a draft"
        for name, work in cost.draft_work.items()
    ]
    lines = [
        *vocabulary,
        *drafts,
        f"stored in {plan.config.dtype}: {bytes_text(cost.inserted_bytes)}",
        f"KV cache: {cache if growth else 'no growth'}",
        f"loaded with the base: {bytes_text(cost.load_bytes)}",
        f"written to {out}: the base's files untouched, otter.safetensors, otter.json"
        if out
        else "dry run: nothing written",
        *([placed] if placed else []),
    ]
    return Group(table, *lines)
