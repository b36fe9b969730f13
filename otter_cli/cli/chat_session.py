"""A conversation of `otter chat`: its messages, the active guides, the signal that colours tokens.

`ChatSession` carries out commands (lines that start with /) and sends messages; the terminal reads
and shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.api.generated_text import GeneratedText, nan_if_not_finite, to_generated_text
from otter_cli.api.model import encode_prompts
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import guide_for_signal, parse_guide
from otter_cli.decoding.results import IncrementalDetokenizer
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import check_scoring_signal
from otter_cli.signals.finite import finite_or_none, non_finite_signals, warn_non_finite

if TYPE_CHECKING:
    from otter_cli.api.model import Otter
    from otter_cli.cli.chat_terminal import ChatTerminal


HELP = """\
/guide NAME:WEIGHT   steer by a signal; /guide alone lists what is on
/plain               switch all guides off
/signal NAME         colour tokens by this signal
/system TEXT         set the system message, and start anew
/new                 start anew
/save FILE           write the conversation, with its signals, as JSON
/quit                end (Ctrl-D too)"""


@dataclass
class ChatSettings:
    """What a user may change while the conversation runs."""

    sampling: Sampling
    guides: dict[str, float] = field(default_factory=dict)
    candidates: int = 10
    signal: str | None = None
    system: str | None = None


class ChatSession:
    """One conversation after another. `turns` holds each message and answer with its signals;
    those from `first` on are of the present conversation."""

    def __init__(self, otter: Otter, settings: ChatSettings) -> None:
        self.otter, self.settings = otter, settings
        if not getattr(otter.tokenizer, "chat_template", None):
            raise OtterError(
                "the base's tokenizer has no chat template, so it does not chat",
                hint="otter generate FOLDER TEXT continues plain text",
            )
        self._check_guides(settings.guides)
        if settings.signal is not None:
            check_scoring_signal(otter.model, settings.signal)
        elif otter.signals:
            settings.signal = otter.signals[0]
        self.messages: list[dict[str, str]] = []
        self.turns: list[dict[str, Any]] = []
        # The scale of a signal's colours: its lowest and highest value so far.
        self.scale: dict[str, tuple[float, float]] = {}
        self._start()

    def run(self, terminal: ChatTerminal) -> None:
        """Reads lines until the input ends or /quit."""
        terminal.say(self._welcome())
        while (line := terminal.read()) is not None:
            try:
                if line.startswith("/"):
                    reply = self.command(line)
                    if reply is None:
                        return
                    terminal.say(reply)
                elif line.strip():
                    self.answer(line, terminal)
            except OtterError as error:
                terminal.say_error(error)

    def answer(self, text: str, terminal: ChatTerminal) -> GeneratedText:
        """Sends one message and streams the answer. Ctrl-C keeps what was written so far; where
        that is nothing, the message is not kept either."""
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
                "signals": {
                    name: finite_or_none(values.tolist()) for name, values in answer.signals.items()
                },
                "guides": dict(self.settings.guides),
                "finish": answer.finish,
            }
        )
        return answer

    def command(self, line: str) -> str | None:
        """Carries out a line that starts with /. Returns what to say, or None to end."""
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
        coloured = (
            f"; tokens are coloured by {self.settings.signal!r}" if self.settings.signal else ""
        )
        return f"chatting with the base's chat template{coloured}; /help lists commands"

    def _generate(self, ids: list[int], terminal: ChatTerminal) -> GeneratedText:
        otter, settings = self.otter, self.settings
        room = otter.model.shape.max_positions - len(ids)
        if room < 1:
            raise OtterError(
                f"the conversation fills the base's window of {otter.model.shape.max_positions} "
                "tokens",
                hint="/new starts anew",
            )
        sampling = replace(
            settings.sampling, max_new_tokens=min(settings.sampling.max_new_tokens, room)
        )
        shown = [settings.signal] if settings.signal else []
        stream = _AnswerStream(self, IncrementalDetokenizer(otter.tokenizer, ids), terminal)
        guides = [
            guide_for_signal(otter.model, name, weight, settings.candidates)
            for name, weight in settings.guides.items()
        ]
        try:
            row = generate(
                otter.model,
                [ids],
                sampling,
                guide=guides,
                signals=shown,
                # A token is shown with its signal, so it is read at once.
                read_every=1,
                on_token=None if shown else stream.token,
                on_read=stream.read if shown else None,
            )[0]
            answer = to_generated_text(otter.tokenizer, ids, row, otter.labels(shown))
        except KeyboardInterrupt:
            answer = stream.stopped()
        terminal.end_answer(answer.finish, kept=bool(answer.token_ids))
        return answer

    def _guide(self, text: str) -> str:
        if text:
            name, weight = parse_guide(text, 1.0)
            guides = {**self.settings.guides, name: weight}
            self._check_guides(guides)
            self.settings.guides = {n: w for n, w in guides.items() if w}
        if not self.settings.guides:
            return "no guide is on: the text is the base's own"
        return "guided by " + ", ".join(f"{n}:{w:g}" for n, w in self.settings.guides.items())

    def _plain(self, _: str) -> str:
        self.settings.guides = {}
        return self._guide("")

    def _signal(self, name: str) -> str:
        check_scoring_signal(self.otter.model, name)
        self.settings.signal = name
        return f"tokens are coloured by {name!r}"

    def _system(self, text: str) -> str:
        self.settings = replace(self.settings, system=text or None)
        return self._new("")

    def _new(self, _: str) -> str:
        self._start()
        return "a new conversation"

    def _save(self, path: str) -> str:
        if not path:
            raise OtterError("/save needs a file name", hint="/save chat.json")
        turns = self.turns[self.first :]
        write_json(Path(path), {"messages": self.messages, "turns": turns})
        return f"saved to {path}"

    def _start(self) -> None:
        system = self.settings.system
        self.messages = [{"role": "system", "content": system}] if system else []
        self.first = len(self.turns)

    def _check_guides(self, guides: Mapping[str, float]) -> None:
        for name, weight in guides.items():
            guide = guide_for_signal(self.otter.model, name, weight, self.settings.candidates)
            guide.check(1, self.otter.model.shape.vocab)


class _AnswerStream:
    """Shows tokens as they come, each with its signal where one is read."""

    def __init__(
        self, chat: ChatSession, text: IncrementalDetokenizer, terminal: ChatTerminal
    ) -> None:
        self.chat, self.text, self.terminal = chat, text, terminal
        self.special = set(chat.otter.tokenizer.all_special_ids)
        self.tokens: list[str] = []
        self.ids: list[int] = []
        self.scores: list[Any] = []

    def token(self, row: int, token: int, value: float | None = None) -> None:
        added = self.text.add(token)
        self.ids.append(token)
        self.tokens.append(added)
        if token not in self.special:
            low, high = self._scale(value)
            self.terminal.show_token(added, value, low, high)

    def read(self, row: int, token: int, scores: Mapping[str, Any]) -> None:
        score = next(iter(scores.values()))
        value = finite_or_none(score)
        # Of several classes the likeliest colours the token.
        number = (
            max((v for v in value if v is not None), default=None)
            if isinstance(value, list)
            else value
        )
        self.scores.append(score)
        self.token(row, token, number)

    def _scale(self, value: float | None) -> tuple[float, float]:
        name = self.chat.settings.signal
        if name is None:
            return 0.0, 0.0
        if self.chat.otter.model.signal_configs[name].kind == "classes":
            return 0.0, 1.0
        low, high = self.chat.scale.get(name, (float("inf"), float("-inf")))
        if value is not None:
            self.chat.scale[name] = low, high = min(low, value), max(high, value)
        return low, high

    def stopped(self) -> GeneratedText:
        """What was written before Ctrl-C, which may have come between a token and its score."""
        name = self.chat.settings.signal
        names = [name] if name else []
        parts = zip(self.ids, self.tokens, strict=True)
        return GeneratedText(
            text="".join(text for token, text in parts if token not in self.special),
            tokens=self.tokens,
            token_ids=self.ids,
            signals={name: nan_if_not_finite(self.scores[: len(self.ids)]) for name in names},
            labels=self.chat.otter.labels(names),
            finish="interrupted",
        )
