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
    otter generate grafted "How are you?" --guide reward:1.5 --gate "entropy>1" --candidates 10
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
    chat: Annotated[
        bool, typer.Option("--chat", help="put each prompt into the base's chat template")
    ] = False,
    stop: Annotated[
        list[str] | None, _option("Sampling", "--stop", "end at this string; again for more")
    ] = None,
    reject: Annotated[
        list[str] | None,
        _option("Sampling", "--reject", "end where a signal says so: reward<0"),
    ] = None,
    guide: Annotated[
        list[str] | None,
        _option("Guidance", "--guide", "NAME[:WEIGHT], again for more: steer by a signal"),
    ] = None,
    gate: Annotated[
        list[str] | None,
        _option("Guidance", "--gate", "guide only where entropy>1.5, p<0.6, or SIGNAL>X"),
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
    tree: Annotated[
        str | None, _option("Speed", "--tree", "guesses of each future head, as a tree: 3,2,1")
    ] = None,
    typical: Annotated[
        bool, _option("Speed", "--typical", "accept what is likely enough: faster, and lossy")
    ] = False,
    exact: Annotated[
        bool, _option("Speed", "--exact", "decide near-ties of drafts by steps of one token")
    ] = False,
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
    from otter_cli.decoding import Sampling, Stops
    from otter_cli.decoding import generate as decode
    from otter_cli.decoding.gates import parse_gate, parse_signal_bound
    from otter_cli.model import OtterForCausalLM

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    opened, rejected = parse_gate(gate or []), tuple(map(parse_signal_bound, reject or ()))
    if batch < 1:
        raise OtterError(f"--batch is {batch}", hint="at least 1")
    prompts, batch = _prompts(prompt, file), 1 if exact else batch
    model = OtterForCausalLM.from_pretrained(folder, base=base, device=device)
    tokenizer = AutoTokenizer.from_pretrained(base or folder, local_files_only=True)
    shown = _shown(model, signal)
    stops = Stops(tuple(stop or ()), rejected, tokenizer)
    steered = [_guide(model, text, strength, candidates, label) for text in guide or ()]
    _warn_untrained(model, [*shown, *(one.signal for one in steered), *([draft] if draft else [])])
    labels, records = labels_of(model, shown), []
    with progress(len(prompts), "generating") as advance:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            encoded = [_encoded(tokenizer, text, chat) for text in part]
            rows = decode(
                model,
                encoded,
                sampling,
                guide=steered,
                gate=opened,
                drafter=_drafter(draft, tree),
                exact=exact and draft is not None,
                acceptance="typical" if typical else "lossless",
                signals=shown,
                stops=stops,
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


def _drafter(draft: str | None, tree: str | None) -> Any:
    from otter_cli.core.errors import OtterError
    from otter_cli.decoding import FutureDrafter, PromptLookup, TreeShape

    if tree is not None and (draft is None or draft == "prompt-lookup"):
        raise OtterError("--tree needs --draft with a future signal", hint="--draft future")
    if draft is None:
        return None
    if draft == "prompt-lookup":
        return PromptLookup()
    if tree is None:
        return FutureDrafter(draft)
    try:
        widths = [int(width) for width in tree.split(",")]
    except ValueError:
        raise OtterError(f"--tree {tree!r} is no list of widths", hint="such as 3,2,1") from None
    return FutureDrafter(draft, TreeShape.of_widths(widths))


def _guide(
    model: OtterForCausalLM, text: str, strength: float, candidates: int, label: str | None
) -> Any:
    """NAME or NAME:WEIGHT: V-style by a score of text, Q-style by action values."""
    from otter_cli.core.errors import OtterError
    from otter_cli.decoding import SignalGuide, VocabularyGuide
    from otter_cli.decoding.scores import check_signal

    name, colon, weight = text.partition(":")
    try:
        pull = float(weight) if colon else strength
    except ValueError:
        raise OtterError(f"--guide {text!r}: {weight!r} is no number", hint="reward:1.5") from None
    if check_signal(model, name).kind == "vocabulary":
        return VocabularyGuide(name, pull, candidates)
    return SignalGuide(name, pull, candidates, label)


def _encoded(tokenizer: Any, text: str, chat: bool) -> list[int]:
    from otter_cli.core.errors import OtterError

    if not chat:
        return list(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise OtterError("the base's tokenizer has no chat template", hint="leave --chat out")
    turn = [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(written, add_special_tokens=False)["input_ids"])
