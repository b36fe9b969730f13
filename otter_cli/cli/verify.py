"""`otter verify`: proves that a graft's logits equal its base's, bit for bit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.report import Verdict, VerificationReport


app = verb_app()
_INTERRUPTED = 130


def _option(panel: str, name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel)


@verb(
    app,
    example="""\
    otter verify grafted --base llama-base
    otter verify grafted --base llama-base --static
    otter verify grafted --budget 30s
    otter verify somebody-elses --base llama-base --grid full --random 200 --strict construction
    otter verify --check proof.json""",
)
def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="a grafted folder, or any other that may equal BASE")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="the base; default: the one inside the graft")
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="files and tensors on disk only, without torch")
    ] = False,
    independent: Annotated[
        bool, typer.Option("--independent", help="load the base a second time, from its own files")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run modelling code that FOLDER brings")
    ] = False,
    grid: Annotated[
        Literal["quick", "full"], _option("Grid", "--grid", "how many ways of running it")
    ] = "quick",
    random: Annotated[int, _option("Grid", "--random", "so many random cases on top")] = 0,
    seed: Annotated[int, _option("Grid", "--seed", "of tokens and random cases")] = 0,
    dtype: Annotated[
        list[str] | None,
        _option(
            "Grid", "--dtype", "float32, bfloat16, float16; again for more; default: the grid's"
        ),
    ] = None,
    device: Annotated[
        list[str] | None, _option("Grid", "--device", "cpu, cuda; again for more")
    ] = None,
    budget: Annotated[
        str | None,
        _option("Grid", "--budget", "seconds to spend (30s, 2m): the most telling cases first"),
    ] = None,
    strict: Annotated[
        Literal["construction", "grid", "close"],
        _option("Proof", "--strict", "the least verdict that exits 0"),
    ] = "grid",
    proof: Annotated[
        Path | None, _option("Proof", "--proof", "where to write it; default: proof.json")
    ] = None,
    check: Annotated[
        Path | None,
        _option("Proof", "--check", "run this proof again, on its folders unless others are given"),
    ] = None,
) -> Outcome:
    """Prove that a graft says what its base says, to the bit, or show where it does not.

    Files by digest; a trace of every operation; logits over a grid of lengths, batches, caches and
    dtypes; the same with NaN and infinity in the inserted tensors. Exit 1 when it fails. Ctrl-C
    gives the verdict of what was done until then, and exit 130.
    """
    from otter_cli.core.atomic import write_json
    from otter_cli.core.formatting import parse_seconds
    from otter_cli.core.process import let_threads_sleep
    from otter_cli.verification.agenda import INTERRUPTED, VerificationRequest
    from otter_cli.verification.grid import Grid
    from otter_cli.verification.proof import proof_record, read_proof
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify as run

    seconds = parse_seconds(budget) if budget else 0.0
    earlier = read_proof(check) if check else None
    if earlier:
        request = _request_from_proof(earlier, folder, base, trust_remote_code)
    elif folder:
        chosen = Grid(grid, random, seed, tuple(dtype or ()), devices=tuple(device or ["cpu"]))
        request = VerificationRequest(
            folder, base, chosen, static, independent, trust_remote_code, seconds
        )
    else:
        raise OtterError("verify what?", hint="`otter verify OUT --base BASE`")
    target = proof or (None if earlier else Path("proof.json"))
    _check_writable(target)
    let_threads_sleep()
    found = run(request, interruptible=True)
    verdict = decide(found)
    record = proof_record(found, verdict)
    if target:
        write_json(target, record)
    outcome = {
        **record,
        "proof": target,
        "check": _compare_with_proof(earlier, record) if earlier else None,
    }
    passed = verdict.passes(strict) and not (earlier and outcome["check"]["differences"])
    interrupted = found.left_out is not None and found.left_out.why == INTERRUPTED
    code = _INTERRUPTED if interrupted else 0 if passed else 1
    return Outcome(outcome, lambda: _view(found, verdict, outcome), exit_code=code)


def _request_from_proof(
    earlier: dict[str, Any], folder: Path | None, base: Path | None, trust: bool
) -> VerificationRequest:
    """What the proof asks for. Whether code may run is for this run's command line to say: a proof
    may come from anybody."""
    from otter_cli.verification.proof import request_of

    request = request_of(earlier)
    return replace(request, folder=folder or request.folder, base=base or request.base, trust=trust)


def _check_writable(target: Path | None) -> None:
    """Before minutes of work, rather than after them."""
    if target and not (target.absolute().parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise OtterError(
            f"{target}: nothing can be written there", hint="say where the proof may go: --proof"
        )


def _compare_with_proof(earlier: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    from otter_cli.verification.proof import disagreements, same_outputs

    return {
        "differences": list(disagreements(earlier, record)),
        "same_outputs": same_outputs(earlier, record),
    }


def _view(found: VerificationReport, verdict: Verdict, outcome: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from otter_cli.reports.terminal import terminal_page
    from otter_cli.reports.verification import verification_report

    lines = [f"proof: {outcome['proof']}"] if outcome["proof"] else []
    if outcome["check"]:
        lines += outcome["check"]["differences"] or ["the proof holds: the same came out again"]
        lines.append(
            f"logits with the proof's own bits: {outcome['check']['same_outputs']} of "
            f"{outcome['cases']} cases"
        )
    return Group(terminal_page(verification_report(found, verdict)), Text("\n".join(lines)))
