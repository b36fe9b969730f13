"""A conversation of `otter chat`: its messages, the active guides, the signal that colours tokens.

`ChatSession` executes commands (lines that start with /) and sends messages. The terminal reads
lines and shows answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.api.generated_text import (
    GeneratedText,
    nan_if_not_finite,
    to_generated_text,
    visible_text,
)
from otter_cli.api.model import encode_prompts
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import special_ids
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import (
    guide_for_signal,
    guides_for_signals,
    parse_guide,
)
from otter_cli.decoding.results import IncrementalDetokenizer
from otter_cli.decoding.session import check_scoring_signal
from otter_cli.signals.finite import finite_or_none, non_finite_signals, warn_non_finite

if TYPE_CHECKING:
    from otter_cli.api.model import Otter
    from otter_cli.cli.chat_terminal import ChatTerminal
    from otter_cli.cli.generate_options import ChatOptions


HELP = """\
/guide NAME:WEIGHT   steer by a signal; /guide alone lists the active guides
/plain               switch off all guides
/signal NAME         colour tokens by this signal
/system TEXT         set the system message, and start a new conversation
/new                 start a new conversation
/save FILE           write the conversation, with its signals, as JSON
/quit                end (or Ctrl-D)"""


class ChatSession:
    """One or more conversations, one after another.

    `turns` holds each message with its answer and signals. The turns from `conversation_start` on
    belong to the current conversation. Raises OtterError for a base that has no chat template.
    """

    def __init__(self, otter: Otter, options: ChatOptions) -> None:
        self.otter, self.options = otter, options
        if not getattr(otter.tokenizer, "chat_template", None):
            raise OtterError(
                "the base's tokenizer has no chat template, so it does not chat",
                hint="otter generate FOLDER TEXT continues plain text",
            )
        self.guides = dict(options.guides)
        self._check_guides(self.guides)
        if options.signal is not None:
            check_scoring_signal(otter.model, options.signal)
        self.signal = options.signal or next(iter(otter.signals), None)
        self.system = options.system
        self.messages: list[dict[str, str]] = []
        self.turns: list[dict[str, Any]] = []
        # The lowest and highest value of each signal so far: the ends of its colour scale.
        self.colour_scale: dict[str, tuple[float, float]] = {}
        self._start()

    def run(self, terminal: ChatTerminal) -> None:
        """Reads lines until the input ends or /quit."""
        terminal.print_message(self._welcome())
        while (line := terminal.read()) is not None:
            try:
                if line.startswith("/"):
                    reply = self.command(line)
                    if reply is None:
                        return
                    terminal.print_message(reply)
                elif line.strip():
                    self.answer(line, terminal)
            except OtterError as error:
                terminal.print_error(error)

    def answer(self, text: str, terminal: ChatTerminal) -> GeneratedText:
        """Sends one message and streams the answer. Ctrl-C keeps the text so far; if there is none,
        the message is dropped too."""
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = encode_prompts(self.otter.tokenizer, messages)[0][0]
        answer = self._generate(ids, terminal)
        if not answer.token_ids:
            return answer
        warn_non_finite(
            non_finite_signals({n: values.tolist() for n, values in answer.signals.items()})
        )
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.turns.append(
            {
                "user": text,
                "assistant": answer.text,
                "tokens": answer.tokens,
                "signals": answer.signal_record(),
                "guides": dict(self.guides),
                "finish": answer.finish,
            }
        )
        return answer

    def command(self, line: str) -> str | None:
        """Executes a line that starts with /. Returns the reply, or None to end the session."""
        name, _, rest = line[1:].strip().partition(" ")
        if name in ("quit", "exit"):
            return None
        commands: Mapping[str, Callable[[str], str]] = {
            "help": lambda _: HELP,
            "guide": self._guide,
            "plain": self._plain,
            "signal": self._signal,
            "system": self._system,
            "new": self._new,
            "save": self._save,
        }
        if name not in commands:
            raise OtterError(f"there is no command /{name}", hint="/help lists the commands")
        return commands[name](rest.strip())

    def _welcome(self) -> str:
        coloured = f"; tokens are coloured by {self.signal!r}" if self.signal else ""
        return f"chatting with the base's chat template{coloured}; /help lists commands"

    def _generate(self, ids: list[int], terminal: ChatTerminal) -> GeneratedText:
        otter, sampling = self.otter, self.options.sampling
        room = otter.model.shape.max_positions - len(ids)
        if room < 1:
            raise OtterError(
                f"the conversation fills the base's window of {otter.model.shape.max_positions} "
                "tokens",
                hint="/new starts a new conversation",
            )
        shown = [self.signal] if self.signal else []
        stream = _AnswerStream(self, IncrementalDetokenizer(otter.tokenizer, ids), terminal)
        try:
            row = generate(
                otter.model,
                [ids],
                replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room)),
                guide=guides_for_signals(otter.model, self.guides, self.options.candidates),
                signals=shown,
                # Each token is shown with its signal, so the signal is read at once.
                read_every=1,
                on_token=None if shown else stream.show,
                on_read=stream.show_scored if shown else None,
            )[0]
            answer = to_generated_text(otter.tokenizer, ids, row, otter.labels(shown))
        except KeyboardInterrupt:
            answer = stream.interrupted_text()
        terminal.end_answer(answer.finish, kept=bool(answer.token_ids))
        return answer

    def _guide(self, text: str) -> str:
        if text:
            name, weight = parse_guide(text, 1.0)
            guides = {**self.guides, name: weight}
            self._check_guides(guides)
            self.guides = {n: w for n, w in guides.items() if w}
        if not self.guides:
            return "no guide is active: the text is the base's own"
        return "guided by " + ", ".join(f"{n}:{w:g}" for n, w in self.guides.items())

    def _plain(self, _: str) -> str:
        self.guides = {}
        return self._guide("")

    def _signal(self, name: str) -> str:
        check_scoring_signal(self.otter.model, name)
        self.signal = name
        return f"tokens are coloured by {name!r}"

    def _system(self, text: str) -> str:
        self.system = text or None
        return self._new("")

    def _new(self, _: str) -> str:
        self._start()
        return "a new conversation"

    def _save(self, path: str) -> str:
        if not path:
            raise OtterError("/save needs a file name", hint="/save chat.json")
        turns = self.turns[self.conversation_start :]
        write_json(Path(path), {"messages": self.messages, "turns": turns})
        return f"saved to {path}"

    def _start(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.conversation_start = len(self.turns)

    def _check_guides(self, guides: Mapping[str, float]) -> None:
        for name, weight in guides.items():
            guide = guide_for_signal(self.otter.model, name, weight, self.options.candidates)
            guide.check(1, self.otter.model.shape.vocab)


class _AnswerStream:
    """Shows the tokens of one answer as they are generated, with their signal if one is read."""

    def __init__(
        self, session: ChatSession, text: IncrementalDetokenizer, terminal: ChatTerminal
    ) -> None:
        self.session, self.text, self.terminal = session, text, terminal
        self.special = special_ids(session.otter.tokenizer)
        self.tokens: list[str] = []
        self.ids: list[int] = []
        self.scores: list[Any] = []

    def show(self, row: int, token: int, value: float | None = None) -> None:
        added = self.text.add(token)
        self.ids.append(token)
        self.tokens.append(added)
        if token not in self.special:
            low, high = self._colour_scale(value)
            self.terminal.show_token(added, value, low, high)

    def show_scored(self, row: int, token: int, scores: Mapping[str, Any]) -> None:
        score = next(iter(scores.values()))
        value = finite_or_none(score)
        if isinstance(value, list):
            # The likeliest of several classes colours the token.
            value = max((v for v in value if v is not None), default=None)
        self.scores.append(score)
        self.show(row, token, value)

    def _colour_scale(self, value: float | None) -> tuple[float, float]:
        name, scale = self.session.signal, self.session.colour_scale
        if name is None:
            return 0.0, 0.0
        if self.session.otter.model.signal_configs[name].kind == "classes":
            return 0.0, 1.0
        low, high = scale.get(name, (float("inf"), float("-inf")))
        if value is not None:
            scale[name] = low, high = min(low, value), max(high, value)
        return low, high

    def interrupted_text(self) -> GeneratedText:
        """The text before Ctrl-C, which may have come between a token and its score."""
        otter = self.session.otter
        names = [self.session.signal] if self.session.signal else []
        return GeneratedText(
            text=visible_text(otter.tokenizer, self.ids, self.tokens),
            tokens=self.tokens,
            token_ids=self.ids,
            signals={name: nan_if_not_finite(self.scores[: len(self.ids)]) for name in names},
            labels=otter.labels(names),
            finish="interrupted",
        )
