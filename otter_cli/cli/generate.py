"""`otter generate`: text with its signals, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.app import Outcome, verb, verb_app

if TYPE_CHECKING:
    from otter_cli.model import OtterForCausalLM

app = verb_app()


def _option(panel: str, name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel)


@verb(
    app,
    example="""\
    otter generate grafted "How are you?"
    otter generate grafted "How are you?" --guide reward --strength 1.5 --candidates 10
    otter generate grafted "How are you?" --draft future --max-new-tokens 64
    cat prompts.txt | otter generate grafted - --json""",
)
def generate(
    folder: Annotated[Path, typer.Argument(help="the grafted folder")],
    prompt: Annotated[
        str | None, typer.Argument(help="the prompt; - reads one prompt a line from stdin")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="prompts from a file: txt, jsonl, jsonl.gz")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="the base, where FOLDER is an adapter alone")
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option("--signal", help="signals to show (default: all that score)"),
    ] = None,
    max_new_tokens: Annotated[
        int, _option("Sampling", "--max-new-tokens", "stop after this many")
    ] = 48,
    temperature: Annotated[float, _option("Sampling", "--temperature", "0 is greedy")] = 0.0,
    top_k: Annotated[int, _option("Sampling", "--top-k", "draw from the k best; 0: all")] = 0,
    top_p: Annotated[float, _option("Sampling", "--top-p", "nucleus; 1: all")] = 1.0,
    seed: Annotated[int, _option("Sampling", "--seed", "of all draws")] = 0,
    guide: Annotated[
        str | None, _option("Guidance", "--guide", "steer by this signal, in the same pass")
    ] = None,
    strength: Annotated[
        float, _option("Guidance", "--strength", "of the guide; negative steers away, 0 is plain")
    ] = 1.0,
    candidates: Annotated[
        int, _option("Guidance", "--candidates", "tokens that are scored at each step")
    ] = 10,
    label: Annotated[
        str | None,
        _option("Guidance", "--label", "attribute or class of the guide (default: first)"),
    ] = None,
    draft: Annotated[
        str | None,
        _option("Speed", "--draft", "a future signal, or prompt-lookup: same text, fewer passes"),
    ] = None,
    batch: Annotated[int, _option("Speed", "--batch", "prompts that run side by side")] = 8,
    device: Annotated[str, _option("Speed", "--device", "cpu, cuda, cuda:1")] = "cpu",
) -> Outcome:
    """Generate text; every token comes with its signals, from the same pass.

    Without --guide the text is the base's own, bit for bit.
    """
    from transformers import AutoTokenizer

    from otter_cli.cli.generated import labels_of, record_of, view_of
    from otter_cli.core.console import progress
    from otter_cli.core.errors import OtterError
    from otter_cli.decoding import Sampling, SignalGuide
    from otter_cli.decoding import generate as decode
    from otter_cli.model import OtterForCausalLM

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    steered = SignalGuide(guide, strength, candidates, label) if guide else None
    if batch < 1:
        raise OtterError(f"--batch is {batch}", hint="at least 1")
    prompts = _prompts(prompt, file)
    model = OtterForCausalLM.from_pretrained(folder, base=base, device=device)
    tokenizer = AutoTokenizer.from_pretrained(base or folder, local_files_only=True)
    shown = _shown(model, signal)
    _warn_untrained(model, [*shown, *(name for name in (guide, draft) if name)])
    labels, records = labels_of(model, shown), []
    with progress(len(prompts), "generating") as advance:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            encoded = [tokenizer(text)["input_ids"] for text in part]
            rows = decode(
                model, encoded, sampling, guide=steered, drafter=_drafter(draft), signals=shown
            )
            for text, ids, row in zip(part, encoded, rows, strict=True):
                records.append(record_of(text, ids, row, tokenizer, labels))
            advance(len(part))
    data = records[0] if len(records) == 1 else {"generations": records}
    return Outcome(data, view=lambda: view_of(records))


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    import sys

    from otter_cli.core.errors import OtterError
    from otter_cli.data.prompts import read_prompts

    if (prompt is None) == (file is None):
        raise OtterError(
            "give a prompt, or --file, and not both",
            hint='otter generate FOLDER "text", or - to read prompts from stdin',
        )
    if file is not None:
        return [row.text for row in read_prompts(file)]
    if prompt != "-":
        return [str(prompt)]
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise OtterError("stdin holds no prompt", hint="one prompt a line")
    return lines


def _shown(model: OtterForCausalLM, asked: list[str] | None) -> list[str]:
    configs = model.signal_configs
    return asked or [name for name, config in configs.items() if config.kind != "future"]


def _warn_untrained(model: OtterForCausalLM, names: list[str]) -> None:
    from otter_cli.core.console import warn

    for name in dict.fromkeys(names):
        if name in model.signal_configs and name not in model.manifest.training:
            warn(f"signal {name!r} is untrained: its numbers mean nothing yet")


def _drafter(draft: str | None) -> Any:
    from otter_cli.decoding import FutureDrafter, PromptLookup

    if draft is None:
        return None
    return PromptLookup() if draft == "prompt-lookup" else FutureDrafter(draft)
