"""`otter generate`: text with its signals, token by token."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.app import Outcome, verb, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.decoding import Generation
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
) -> Outcome:
    """Generate text; every token comes with its signals, from the same pass.

    Without --guide the text is the base's own, bit for bit.
    """
    from transformers import AutoTokenizer

    from otter_cli.decoding import Sampling, SignalGuide
    from otter_cli.decoding import generate as decode
    from otter_cli.model import OtterForCausalLM

    prompts = _prompts(prompt, file)
    model = OtterForCausalLM.from_pretrained(folder, base=base)
    tokenizer = AutoTokenizer.from_pretrained(base or folder)
    shown = _shown(model, signal)
    _warn_untrained(model, [*shown, *(name for name in (guide, draft) if name)])
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    steered = SignalGuide(guide, strength, candidates, label) if guide else None
    rows = decode(
        model,
        [tokenizer(text)["input_ids"] for text in prompts],
        sampling,
        guide=steered,
        drafter=_drafter(draft),
        signals=shown,
    )
    records = [_record(text, row, tokenizer) for text, row in zip(prompts, rows, strict=True)]
    data = records[0] if len(records) == 1 else {"generations": records}
    return Outcome(data, view=lambda: _view(records, model))


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


def _record(prompt: str, row: Generation, tokenizer: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": tokenizer.decode(row.tokens, skip_special_tokens=True),
        "tokens": [
            {"id": token, "text": tokenizer.decode([token]), "logprob": logprob}
            for token, logprob in zip(row.tokens, row.logprobs, strict=True)
        ],
        "signals": row.signals,
        "finish": row.finish,
        "counters": asdict(row.counters),
    }


def _view(records: list[dict[str, Any]], model: OtterForCausalLM) -> RenderableType:
    from rich.console import Group

    from otter_cli.reports.tokens import signal_lines, token_table

    parts: list[Any] = []
    for record in records:
        parts += [*signal_lines(record), ""]
        if len(records) == 1:
            parts.append(token_table(record))
        counters = record["counters"]
        rate = len(record["tokens"]) / max(counters["seconds"], 1e-9)
        parts.append(
            f"{len(record['tokens'])} tokens in {counters['base_passes']} passes of the base, "
            f"{rate:.1f} tokens a second"
        )
    return Group(*parts)
