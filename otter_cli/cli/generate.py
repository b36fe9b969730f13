"""`otter generate`: text with its signals, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otter_cli.cli import generate_options as o
from otter_cli.cli.command import Outcome, verb, verb_app

app = verb_app()


@verb(
    app,
    example="""\
    otter generate grafted "How are you?"
    otter generate grafted "How are you?" --guide reward:1.5 --gate "entropy>1" --candidates 10
    otter generate grafted "How are you?" --draft future --tree learnt:16 --max-new-tokens 64
    cat prompts.txt | otter generate grafted - --json""",
    uses_graft=True,
)
def generate(
    folder: o.Folder,
    prompt: o.Prompt = None,
    file: o.File = None,
    base: o.Base = None,
    signal: o.Signals = None,
    max_new_tokens: o.MaxNewTokens = 48,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    seed: o.Seed = 0,
    chat: o.Chat = None,
    stream: o.Stream = None,
    stop: o.Stop = None,
    reject: o.Reject = None,
    guide: o.Guides = None,
    gate: o.Gates = None,
    strength: o.Strength = 1.0,
    candidates: o.Candidates = 10,
    label: o.Label = None,
    draft: o.Draft = None,
    tree: o.Tree = None,
    typical: o.Typical = False,
    exact: o.Exact = False,
    read_every: o.ReadEvery = None,
    batch: o.Batch = 8,
    device: o.Device = "cpu",
) -> Outcome:
    """Generate text; every token comes with its signals, from the same pass.

    Without --guide the text is the base's own, bit for bit. A base with a chat template chats;
    --raw goes on from plain text.
    With several prompts --json writes a line for each.
    """
    from otter_cli.cli.generate_run import GenerateRequest, GenerateRun, read_requested_prompts
    from otter_cli.decoding.bounds import parse_gate, parse_signal_bound
    from otter_cli.decoding.sampling import Sampling

    asked = GenerateRequest(
        Sampling(max_new_tokens, temperature, top_k, top_p, seed),
        guides=tuple(guide or ()),
        strength=strength,
        candidates=candidates,
        label=label,
        gate=parse_gate(gate or []),
        stops=tuple(stop or ()),
        rejects=tuple(map(parse_signal_bound, reject or ())),
        signals=tuple(signal or ()),
        draft=draft,
        tree=tree,
        typical=typical,
        exact=exact and draft is not None,
        chat=chat,
        read_every=read_every,
        batch=batch,
        stream=stream,
    )
    asked.check()
    prompts = read_requested_prompts(prompt, file)
    records = GenerateRun(asked, folder, base, device).run(prompts, file)
    return _outcome(records)


def _outcome(records: list[dict[str, Any]]) -> Outcome:
    from otter_cli.cli.generate_view import texts_view

    data: Mapping[str, Any] | list[dict[str, Any]] = records[0] if len(records) == 1 else records
    return Outcome(data, view=lambda: texts_view(records))
