"""Messages to token ids. This is the only module that applies a chat template.

Training, generation, benchmarks and scorers all get their ids here, from transformers' own
`apply_chat_template(tokenize=True)`. Nothing is added or removed, so a model is trained on the
tokens that it later reads: the template, not the tokenizer, writes BOS and the end of a turn.

Where a finished dialogue is read: many templates write white space after the end of a turn
(ChatML: `<|im_end|>` and a newline). A model that generates stops at the end of its turn and never
reads that white space. A signal of a whole dialogue is therefore read at the token that ends the
last turn, in training and in generation: see `turn_length`. The ids after it stay in the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from otter_cli.core.errors import OtterError
from otter_cli.core.process import resource_limit
from otter_cli.data.tables import Record, TableLike, read_records

Messages = Sequence[Mapping[str, Any]]

# Real templates have some 10,000 characters, and take milliseconds.
_LONGEST = 1_000_000
_LARGEST = 1e9
_SECONDS, _CHARACTERS_A_SECOND = 10.0, 20_000
_MEMORY = 1 << 30
# What a template may write: a system prompt of its own, and each character of a message so often.
_WRITTEN, _TIMES = 1_000_000, 100
_DAMAGED = "tokenizer_config.json or chat_template.jinja is damaged: fetch it again"
# What fails whatever the messages are.
_NO_PROGRAM = ("TemplateSyntaxError", "TemplateAssertionError", "RecursionError")
_LOOPS = "look for a loop or a repetition in the base's chat_template, or leave chat out"


class ChatText(str):
    """A dialogue as the template writes it, with its token ids.

    `prompt`: the beginning that it has in common with the other texts of its row, as the template
    writes it before an answer; "" if there is none.
    """

    ids: tuple[int, ...]
    messages: tuple[Mapping[str, Any], ...]
    prompt: str

    def __new__(
        cls, text: str, ids: Sequence[int] = (), messages: Messages = (), prompt: str = ""
    ) -> Self:
        made = super().__new__(cls, text)
        made.ids, made.messages, made.prompt = tuple(ids), tuple(messages), prompt
        return made

    @property
    def answer(self) -> tuple[int, int] | None:
        """Where the text of the last message begins and ends, in characters; None where that
        message is no plain text, or the template changes it."""
        content = self.messages[-1].get("content") if self.messages else None
        start = self.rfind(content) if isinstance(content, str) else -1
        return None if start < 0 else (start, start + len(str(content)))


def render_chat(
    tokenizer: Any, messages: Messages, *, generate: bool = False, prompt: str = ""
) -> ChatText:
    """Text and token ids of a dialogue; with `generate` up to where the model's answer begins.

    Raises OtterError for a tokenizer without a template, and for a template that fails.
    """
    text = _apply_template(tokenizer, messages, generate, tokenize=False)
    ids = _apply_template(tokenizer, messages, generate, tokenize=True)
    return ChatText(text, ids, messages, prompt)


def messages_of(text: str) -> Messages:
    """The messages of a dialogue; none of a plain text."""
    return text.messages if isinstance(text, ChatText) else ()


def user_turn(text: str) -> Messages:
    """The dialogue of a prompt that is plain text."""
    return [{"role": "user", "content": text}]


def turn_length(tokenizer: Any, ids: Sequence[int]) -> tuple[int, bool]:
    """How many of a dialogue's ids there are up to the token that ends its last turn, and whether
    there is such a token: a special one that only white space follows. Else all ids count."""
    special = _special_ids(tokenizer)
    for index in range(len(ids) - 1, -1, -1):
        if ids[index] in special:
            return index + 1, True
        if tokenizer.decode([ids[index]]).strip():
            break
    return len(ids), False


def turn_closing(tokenizer: Any) -> list[int]:
    """What the template writes after an answer, up to where a finished dialogue is read: the token
    that ends the turn, where it has one. Two answers have it in common."""
    closing: list[int] = []
    for one, other in zip(
        *(_reversed_answer_ids(tokenizer, answer) for answer in "bc"), strict=False
    ):
        if one != other:
            break
        closing.insert(0, one)
    return closing


def close_turn(tokens: Sequence[int], closing: Sequence[int], eos: int | None) -> list[int]:
    """A prompt with its generated answer, as a finished dialogue is read in training."""
    ids, end = list(tokens), list(closing)
    if end and ids[-len(end) :] == end:
        return ids
    return [*(ids[:-1] if ids[-1:] == [eos] else ids), *end]


def require_template(tokenizer: Any) -> None:
    """Raises OtterError for a tokenizer without a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise OtterError(
            "the tokenizer has no chat template",
            hint="leave chat out, or give the base's tokenizer_config.json a chat_template",
        )


def _reversed_answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """The ids of a short dialogue, from its end to its start."""
    dialogue = [*user_turn("a"), {"role": "assistant", "content": answer}]
    ids = _apply_template(tokenizer, dialogue, generate=False, tokenize=True)
    length, _ = turn_length(tokenizer, ids)
    return list(ids[:length][::-1])


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added if token.special}


def _apply_template(tokenizer: Any, messages: Messages, generate: bool, *, tokenize: bool) -> Any:
    require_template(tokenizer)
    _check_size(tokenizer.chat_template)
    given = len(repr(messages))
    # The tokenizer's work is no fault of the template, and longer texts may take longer.
    seconds = _SECONDS + (given / _CHARACTERS_A_SECOND if tokenize else 0)
    try:
        with resource_limit("the chat template", seconds=seconds, memory=_MEMORY, hint=_LOOPS):
            written = tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=generate,
                tokenize=tokenize,
                return_dict=False,
            )
    except OtterError:
        raise
    except Exception as error:
        # A template is a program: it can fail in any way, and so can a tokenizer at its text.
        if type(error).__name__ in _NO_PROGRAM:
            raise OtterError(
                f"the chat template is no sound program: {error}", hint=_DAMAGED
            ) from error
        raise OtterError(
            f"the chat template refuses these messages: {type(error).__name__}: {error}",
            hint="check the order of roles, and whether the template takes such messages "
            "(contents as lists of parts, tool calls)",
        ) from error
    if not tokenize and len(written) > _WRITTEN + given * _TIMES:
        raise OtterError(
            f"the chat template writes {len(written):,} characters for messages of {given:,}",
            hint=_LOOPS,
        )
    return written


def _check_size(template: Any) -> None:
    """A template is a program from a stranger's folder: what no limit on time could stop, since it
    is one operation, is refused as it is written."""
    for text in template.values() if isinstance(template, dict) else [template]:
        if not isinstance(text, str):
            raise OtterError(
                f"the chat template is no text but {type(text).__name__}", hint=_DAMAGED
            )
        if len(text) > _LONGEST:
            raise OtterError(f"the chat template is {len(text):,} characters long", hint=_DAMAGED)
        _check_numbers(text)


@lru_cache(maxsize=8)
def _check_numbers(template: str) -> None:
    from jinja2 import Environment, TemplateError

    try:
        tokens = list(Environment(autoescape=True).lex(template))
    except TemplateError:
        return  # which says more when it is applied
    for _, kind, value in tokens:
        if value == "**" or (kind in ("integer", "float") and float(value) > _LARGEST):
            raise OtterError(
                f"the chat template uses {value}, and such numbers can take hours to compute",
                hint=_LOOPS,
            )


Message = Mapping[str, Any]

# Keys that say whose message it is. A message of these alone says nothing.
_AUTHOR_KEYS = {"role", "name", "tool_call_id"}
_EXAMPLE = 'messages are a list like [{"role": "user", "content": "Hello"}]'


def read_messages(record: Record, column: str, role: str | None = None) -> list[Message]:
    """The messages of a column; of a plain text, one message of `role` where that is given.

    Raises OtterError, with row, column and key, for what is no message.
    """
    value = record.value(column)
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": record.text(column)}]
    if not isinstance(value, list) or not value:
        raise record.error(f"{column!r} holds no messages", f"with chat: true {_EXAMPLE}")
    for number, message in enumerate(value, 1):
        if problem := _message_problem(message):
            raise record.error(f"{column!r}, message {number}: {problem}", _EXAMPLE)
    return list(value)


def read_prompt(record: Record, column: str) -> list[Message]:
    """Messages of a column that a model is to answer."""
    messages = read_messages(record, column, "user")
    if messages[-1]["role"] == "assistant":
        raise record.error(
            f"{column!r} ends with the assistant's own message, and a prompt does not",
            "leave the answer out of the column",
        )
    return messages


def shared_question(dialogues: list[list[Message]]) -> list[Message]:
    """What all dialogues begin with, where it is something to be answered."""
    shared: list[Message] = []
    for first, *others in zip(*dialogues, strict=False):
        if any(other != first for other in others):
            break
        shared.append(first)
    return shared if shared and shared[-1]["role"] in ("user", "tool") else []


def last_text(messages: list[Message]) -> str:
    """What the last message says, for people and for comparison: its text, or its text parts."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text") or "" for part in parts]
    return "\n".join(texts)


def _message_problem(message: Any) -> str:
    if not isinstance(message, Mapping):
        return f"{message!r:.40} is no object with 'role' and 'content'"
    role = message.get("role")
    if not isinstance(role, str) or not role:
        return f"'role' is {role!r:.40}, not a name" if "role" in message else "no 'role'"
    content = message.get("content")
    if content is None:
        said = {key for key, value in message.items() if value} - _AUTHOR_KEYS
        return "" if said else "no 'content', and no tool calls in its place"
    if isinstance(content, str):
        return ""
    if not isinstance(content, list):
        return f"'content' is {content!r:.40}, neither text nor a list of parts"
    return next(filter(None, map(_part_problem, content)), "")


def _part_problem(part: Any) -> str:
    if isinstance(part, str):
        return ""
    if not isinstance(part, Mapping):
        return f"'content' has a part {part!r:.40}, neither text nor an object"
    if part.get("type") == "text" and not isinstance(part.get("text"), str):
        return "'content' has a part of type 'text' without a 'text'"
    return ""


@dataclass(frozen=True)
class ChatTable:
    """A table whose `columns` hold messages, [{"role": ..., "content": ...}, ...].

    Each becomes a `ChatText`: the whole dialogue, with the token ids that transformers gives it.
    The messages of the column `context`, where given, come before each of them; a plain text is a
    user's message there, and the assistant's in `columns`.
    """

    place: TableLike
    tokenizer: Any
    columns: Sequence[str]
    context: str | None = None

    def __str__(self) -> str:
        return str(self.place)

    def records(self) -> Iterator[Record]:
        try:
            require_template(self.tokenizer)
        except OtterError as error:
            raise OtterError(
                f"{self}: chat is asked for, and {error.what}", hint=error.hint
            ) from error
        for record in read_records(self.place):
            yield self._rendered(record)

    def _rendered(self, record: Record) -> Record:
        before = [] if self.context is None else read_messages(record, self.context, "user")
        dialogues = [self._dialogue(record, column, before) for column in self.columns]
        shared = before or (shared_question(dialogues) if len(dialogues) > 1 else [])
        start = str(self._render(record, shared, generate=True)) if shared else ""
        values = dict(record.values)
        for column, messages in zip(self.columns, dialogues, strict=True):
            text = self._render(record, messages, prompt=start)
            if before and not text.startswith(start):
                raise record.error(
                    f"the chat template writes {self.context!r} otherwise before {column!r}",
                    "put the whole dialogue into the columns, and leave prompt out",
                )
            values[column] = text
        if self.context is not None:
            values[self.context] = start
        return replace(record, values=values)

    def _dialogue(self, record: Record, column: str, before: list[Message]) -> list[Message]:
        messages = read_messages(record, column, "assistant" if before else None)
        # Some data sets repeat the prompt in its answers.
        repeated = len(messages) > len(before) and messages[: len(before)] == before
        return messages if repeated else [*before, *messages]

    def _render(
        self, record: Record, messages: list[Message], generate: bool = False, prompt: str = ""
    ) -> ChatText:
        try:
            return render_chat(self.tokenizer, messages, generate=generate, prompt=prompt)
        except OtterError as error:
            raise record.error(error.what, error.hint) from error
