"""`otter bench overhead`: time and memory of an insertion, beside the machine's own bounds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from otter_cli.cli.bench.group import app, option
from otter_cli.cli.command import Outcome, verb


@verb(
    app,
    example="""\
    otter bench overhead --shape llama-134m --threads 2
    otter bench overhead grafted --batch 8 --context 512""",
    uses_graft=True,
)
def overhead(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="a grafted folder; or take --shape")
    ] = None,
    shape: Annotated[
        str | None,
        option(
            "--shape",
            "random weights: llama-134m | qwen3-0.6b | llama-1b | llama-7b | tiny",
            "What",
        ),
    ] = None,
    hidden: Annotated[int | None, option("--hidden", "inserted hidden units", "What")] = None,
    heads: Annotated[int | None, option("--heads", "inserted query heads a layer", "What")] = None,
    ffn: Annotated[int | None, option("--ffn", "inserted FFN units a layer", "What")] = None,
    kv: Annotated[str | None, option("--kv", "own | base", "What")] = None,
    signal: Annotated[
        list[str] | None, option("--signal", "as of otter graft; default: reward", "What")
    ] = None,
    dtype: Annotated[
        str | None, option("--dtype", "float32 | bfloat16 | float16; of a folder: its own", "How")
    ] = None,
    threads: Annotated[int | None, option("--threads", "of torch, on a CPU", "How")] = None,
    batch: Annotated[int, option("--batch", "rows of a pass", "How")] = 1,
    context: Annotated[
        int, option("--context", "tokens of the prefill, and before those decoded", "How")
    ] = 128,
    repeats: Annotated[int, option("--repeats", "decoding steps of each, in turns", "How")] = 100,
    device: Annotated[str, option("--device", "cpu, cuda, cuda:1", "How")] = "cpu",
    peers: Annotated[
        bool, option("--peers", "LoRA and separate reward models, Medusa-1 heads", "Beside")
    ] = False,
    decoding: Annotated[
        bool, option("--decoding", "guided decoding, ARGS, best of n, at batch 1 and 8", "Beside")
    ] = False,
    speculative: Annotated[bool, option("--speculative", "passes with drafts", "Beside")] = False,
    training: Annotated[
        bool, option("--training", "steps: insertion, LoRA, full fine-tuning", "Beside")
    ] = False,
    surgery: Annotated[
        bool, option("--surgery", "graft, verify, strip: cp, sha256sum; start-up", "Beside")
    ] = False,
    profile: Annotated[bool, option("--profile", "the extra time by operation", "Beside")] = False,
    sweep: Annotated[
        bool, option("--sweep", "insertions from 0.1 % to 20 %, FFN and attention", "Beside")
    ] = False,
    everything: Annotated[bool, option("--all", "all of these", "Beside")] = False,
    out: Annotated[
        Path | None, option("--out", "folder of the result; else runs/overhead-NAME", "Output")
    ] = None,
) -> Outcome:
    """Prefill, decode, memory and parameters of a graft over its base's.

    Base and graft take turns, step by step; logits are compared bit for bit in the same run, and
    the bound stands beside each ratio: bytes and operations by count, at rates measured here.
    """
    from otter_cli.benchmarks.overhead.run_overhead import OverheadOptions, run_overhead
    from otter_cli.cli.bench.group import show_report
    from otter_cli.reports.overhead import overhead_report
    from otter_cli.signals.config import parse_signal

    given = {"hidden": hidden, "heads": heads, "ffn": ffn, "kv": kv}
    sizes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if shape is not None:
        sizes["signals"] = tuple(parse_signal(text) for text in signal or ["reward"])
    chosen = {
        "peers": peers,
        "decoding": decoding,
        "speculative": speculative,
        "training": training,
        "surgery": surgery,
        "start-up": surgery,
        "profile": profile,
        "sweep": sweep,
    }
    groups = tuple(name for name, wanted in chosen.items() if wanted or everything)
    asked = OverheadOptions(
        folder, shape, sizes, dtype, device, threads, batch, context, repeats, groups
    )
    result = run_overhead(asked)
    where = out or Path("runs") / f"overhead-{result.settings.subject}"
    result.write(where)
    return show_report(result, overhead_report(result), where)
