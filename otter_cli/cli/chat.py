"""`otter chat`: a conversation with a grafted model, with tokens coloured by a signal."""

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.generate_options import ChatOptions

app = verb_app()


@verb(
    app,
    example="""\
    otter chat grafted
    otter chat grafted --guide reward:1.5 --signal reward
    otter chat grafted --system "Answer in one sentence." --temperature 0.7""",
    uses_graft=True,
    computes=True,
)
def chat(options: ChatOptions) -> Outcome:
    """Talk with a grafted model. A signal from the same pass colours each token.

    Lines that start with / are commands; /help lists them. Ctrl-C stops an answer, Ctrl-D ends the
    conversation. Each line from a pipe is one message.
    """
    from otter_cli.api.model import load
    from otter_cli.cli.chat_session import ChatSession
    from otter_cli.cli.chat_terminal import ChatTerminal

    otter = load(options.folder, base=options.base, device=options.device)
    session = ChatSession(otter, options)
    session.run(ChatTerminal())
    turns = session.turns
    return Outcome({"turns": turns}, view=lambda: f"{len(turns)} turns", piped=str)
