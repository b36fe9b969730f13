"""`otter verify`: proves that a graft's logits equal its base's, bit for bit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.dtype_names import DTYPE_HELP, parse_dtype
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.report import Verdict, VerificationReport


app = verb_app()
_INTERRUPTED = 130


def _option(panel: str, name: str, help: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel)


@verb(
    app,
    example="""\
    otter verify grafted --base llama-base
    otter verify grafted --base llama-base --static
    otter verify grafted --budget 30s
    otter verify somebody-elses --base llama-base --grid full --random 200 --strict construction
    otter verify --check proof.json""",
    computes=True,
)
def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="a grafted folder, or any checkpoint that may equal BASE")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="the base; default: the one inside the graft")
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="compare files and tensors on disk only, without torch")
    ] = False,
    independent: Annotated[
        bool, typer.Option("--independent", help="load the base a second time, from its own files")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run the modelling code in FOLDER")
    ] = False,
    grid: Annotated[
        Literal["quick", "full"], _option("Grid", "--grid", "how many ways to run the models")
    ] = "quick",
    random: Annotated[int, _option("Grid", "--random", "number of further random cases")] = 0,
    seed: Annotated[int, _option("Grid", "--seed", "seed of tokens and random cases")] = 0,
    dtype: Annotated[
        list[str] | None,
        _option("Grid", "--dtype", f"{DTYPE_HELP}; repeatable; default: the grid's"),
    ] = None,
    device: Annotated[
        list[str] | None, _option("Grid", "--device", "cpu, cuda; repeatable")
    ] = None,
    budget: Annotated[
        str | None,
        _option("Grid", "--budget", "time limit (30s, 2m); the most valuable cases run first"),
    ] = None,
    strict: Annotated[
        Literal["construction", "grid", "close"],
        _option("Proof", "--strict", "the weakest verdict that exits 0"),
    ] = "grid",
    proof: Annotated[
        Path | None, _option("Proof", "--proof", "file to write; default: proof.json")
    ] = None,
    check: Annotated[
        Path | None,
        _option("Proof", "--check", "repeat this proof; default: on the folders that it names"),
    ] = None,
) -> Outcome:
    """Prove that a graft's logits equal its base's, bit for bit, or show where they differ.

    The proof compares files by digest, traces every operation, and compares logits over a grid of
    lengths, batches, caches and dtypes, also with NaN and infinity in the inserted tensors. The
    exit code is 1 if it fails. Ctrl-C gives the verdict on the cases so far, and exit code 130.
    """
    from otter_cli.core.atomic import write_json
    from otter_cli.core.formatting import parse_seconds
    from otter_cli.verification.agenda import INTERRUPTED, VerificationRequest
    from otter_cli.verification.grid import Grid
    from otter_cli.verification.proof import proof_record, read_proof
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify as run_verification

    seconds = parse_seconds(budget) if budget else 0.0
    earlier = read_proof(check) if check else None
    if earlier:
        request = _request_from_proof(earlier, folder, base, trust_remote_code)
    elif folder:
        dtypes = tuple(map(parse_dtype, dtype or ()))
        cases = Grid(grid, random, seed, dtypes, devices=tuple(device or ["cpu"]))
        request = VerificationRequest(
            folder, base, cases, static, independent, trust_remote_code, seconds
        )
    else:
        raise OtterError("nothing to verify", hint="`otter verify OUT --base BASE`")
    path = proof or (None if earlier else Path("proof.json"))
    _check_writable(path)
    report = run_verification(request, interruptible=True)
    verdict = decide(report)
    record = proof_record(report, verdict)
    if path:
        write_json(path, record)
    check_record = _compare_with_proof(earlier, record) if earlier else None
    data = {**record, "proof": path, "check": check_record}
    passed = verdict.passes(strict) and not (check_record and check_record["differences"])
    interrupted = report.left_out is not None and report.left_out.why == INTERRUPTED
    code = _INTERRUPTED if interrupted else 0 if passed else 1
    return Outcome(data, lambda: _view(report, verdict, data), exit_code=code)


def _request_from_proof(
    earlier: dict[str, Any], folder: Path | None, base: Path | None, trust: bool
) -> VerificationRequest:
    """The request that the proof records, with other folders if they are given. Only the command
    line of this run may allow code to run, since a proof may come from anybody."""
    from otter_cli.verification.proof import request_of

    request = request_of(earlier)
    return replace(request, folder=folder or request.folder, base=base or request.base, trust=trust)


def _check_writable(path: Path | None) -> None:
    """Raises OtterError, before minutes of work, if the proof cannot be written."""
    if path and not (path.absolute().parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise OtterError(f"{path}: nothing can be written there", hint="--proof names another file")


def _compare_with_proof(earlier: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    from otter_cli.verification.proof import disagreements, same_outputs

    return {
        "differences": list(disagreements(earlier, record)),
        "same_outputs": same_outputs(earlier, record),
    }


def _view(report: VerificationReport, verdict: Verdict, data: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from otter_cli.reports.terminal import terminal_page
    from otter_cli.reports.verification import verification_report

    lines = [f"proof: {data['proof']}"] if data["proof"] else []
    if data["check"]:
        lines += data["check"]["differences"] or ["the proof holds: the results are the same"]
        lines.append(
            f"logits equal to the proof's, bit for bit: {data['check']['same_outputs']} of "
            f"{data['cases']} cases"
        )
    return Group(terminal_page(verification_report(report, verdict)), Text("\n".join(lines)))
