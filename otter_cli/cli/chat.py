"""`otter chat`: a conversation with a grafted model, tokens coloured by a signal."""

from __future__ import annotations

from typing import Annotated

import typer

from otter_cli.cli import generate_options as o
from otter_cli.cli.command import Outcome, verb, verb_app

app = verb_app()

Signal = Annotated[
    str | None, typer.Option("--signal", help="colour tokens by this one (default: the first)")
]
System = Annotated[str | None, typer.Option("--system", help="a system message, sent first")]


@verb(
    app,
    example="""\
    otter chat grafted
    otter chat grafted --guide reward:1.5 --signal reward
    otter chat grafted --system "Answer in one sentence." --temperature 0.7""",
    uses_graft=True,
)
def chat(
    folder: o.Folder,
    base: o.Base = None,
    signal: Signal = None,
    system: System = None,
    max_new_tokens: o.MaxNewTokens = 256,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    seed: o.Seed = 0,
    guide: o.Guides = None,
    strength: o.Strength = 1.0,
    candidates: o.Candidates = 10,
    device: o.Device = "cpu",
) -> Outcome:
    """Talk with a grafted model; each token is coloured by a signal from the same pass.

    Lines that start with / are commands: /help lists them. Ctrl-C stops an answer, Ctrl-D ends.
    From a pipe, each line is one message.
    """
    from otter_cli.api.model import load
    from otter_cli.cli.chat_session import ChatSession, ChatSettings
    from otter_cli.cli.chat_terminal import ChatTerminal
    from otter_cli.decoding.guides.signal_guides import parse_guide
    from otter_cli.decoding.sampling import Sampling

    settings = ChatSettings(
        sampling=Sampling(max_new_tokens, temperature, top_k, top_p, seed),
        guides=dict(parse_guide(text, strength) for text in guide or ()),
        candidates=candidates,
        signal=signal,
        system=system,
    )
    session = ChatSession(load(folder, base=base, device=device), settings)
    session.run(ChatTerminal())
    return Outcome({"turns": session.turns}, view=lambda: f"{len(session.turns)} turns")
