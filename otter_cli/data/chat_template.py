"""Messages to token ids. This is the only module that applies a chat template.

Training, generation, benchmarks and scorers all get their ids here, from transformers' own
`apply_chat_template(tokenize=True)`. Nothing is added or removed, so a model is trained on the
tokens that it later reads. The template, not the tokenizer, writes BOS and the end of a turn.

Many templates write white space after the end of a turn (ChatML: `<|im_end|>` and a newline). A
model that generates stops at the end of its turn, and never reads that white space. A signal of a
whole dialogue is therefore read at the token that ends the last turn, in training and in
generation: see `turn_length`. The ids after it stay in the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from otter_cli.core.errors import OtterError
from otter_cli.core.process import resource_limit
from otter_cli.data.tables import Record, TableLike, read_records

Messages = Sequence[Mapping[str, Any]]

# Limits of a template's text, and of the numbers in it. Real ones have some 10,000 characters.
_MAX_TEMPLATE_CHARACTERS = 1_000_000
_MAX_NUMBER = 1e9
# Limits of a template's run. Real ones take milliseconds.
_SECONDS, _CHARACTERS_PER_SECOND = 10.0, 20_000
_MEMORY_BYTES = 1 << 30
# Limits of its output: characters of its own, and repetitions of each character of the messages.
_OWN_CHARACTERS, _MAX_REPETITIONS = 1_000_000, 100
_DAMAGED = "tokenizer_config.json or chat_template.jinja is damaged: fetch it again"
# Errors of the template itself, whatever the messages are.
_TEMPLATE_ERRORS = ("TemplateSyntaxError", "TemplateAssertionError", "RecursionError")
_LOOPS = "look for a loop or a repetition in the base's chat_template, or leave chat out"


class ChatText(str):
    """A dialogue as the template writes it, with its token ids.

    `prompt`: the beginning that it shares with the other texts of its row, as the template writes
    it before an answer; "" if there is none.
    """

    ids: tuple[int, ...]
    messages: tuple[Mapping[str, Any], ...]
    prompt: str

    def __new__(
        cls, text: str, ids: Sequence[int] = (), messages: Messages = (), prompt: str = ""
    ) -> Self:
        chat = super().__new__(cls, text)
        chat.ids, chat.messages, chat.prompt = tuple(ids), tuple(messages), prompt
        return chat

    @property
    def answer(self) -> tuple[int, int] | None:
        """First and last character (exclusive) of the last message's text; None if that message is
        not a plain text, or the template changes it."""
        content = self.messages[-1].get("content") if self.messages else None
        start = self.rfind(content) if isinstance(content, str) else -1
        return None if start < 0 else (start, start + len(str(content)))


def render_chat(
    tokenizer: Any, messages: Messages, *, generate: bool = False, prompt: str = ""
) -> ChatText:
    """Text and token ids of a dialogue; with `generate` up to the beginning of the model's answer.

    Raises OtterError for a tokenizer without a template, and for a template that fails.
    """
    text = _apply_template(tokenizer, messages, generate, tokenize=False)
    ids = _apply_template(tokenizer, messages, generate, tokenize=True)
    return ChatText(text, ids, messages, prompt)


def messages_of(text: str) -> Messages:
    """The messages of a dialogue; empty for a plain text."""
    return text.messages if isinstance(text, ChatText) else ()


def user_turn(text: str) -> Messages:
    """The dialogue of a prompt that is plain text."""
    return [{"role": "user", "content": text}]


def turn_length(tokenizer: Any, ids: Sequence[int]) -> tuple[int, bool]:
    """The number of a dialogue's ids up to the token that ends its last turn, and True; or the
    number of all ids, and False. That token is special, and only white space follows it."""
    special = special_ids(tokenizer)
    for index in range(len(ids) - 1, -1, -1):
        if ids[index] in special:
            return index + 1, True
        if tokenizer.decode([ids[index]]).strip():
            break
    return len(ids), False


def turn_closing(tokenizer: Any) -> list[int]:
    """The ids that the template writes after an answer, up to the token that ends the turn where
    there is one: the common end of dialogues with two different answers."""
    closing: list[int] = []
    ends = (_reversed_answer_ids(tokenizer, answer) for answer in "bc")
    for first, second in zip(*ends, strict=False):
        if first != second:
            break
        closing.insert(0, first)
    return closing


def close_turn(tokens: Sequence[int], closing: Sequence[int], eos: int | None) -> list[int]:
    """The ids of a prompt with its generated answer, ended as a finished dialogue in training."""
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
def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that are no text, such as </s> and <|im_end|>."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added if token.special}


def _apply_template(tokenizer: Any, messages: Messages, generate: bool, *, tokenize: bool) -> Any:
    require_template(tokenizer)
    _check_size(tokenizer.chat_template)
    size = len(repr(messages))
    # The tokenizer needs time too, in proportion to the messages.
    seconds = _SECONDS + (size / _CHARACTERS_PER_SECOND if tokenize else 0)
    try:
        with resource_limit(
            "the chat template", seconds=seconds, memory=_MEMORY_BYTES, hint=_LOOPS
        ):
            output = tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=generate,
                tokenize=tokenize,
                return_dict=False,
            )
    except OtterError:
        raise
    except Exception as error:
        # A template is a program that can raise anything, and so can a tokenizer.
        if type(error).__name__ in _TEMPLATE_ERRORS:
            raise OtterError(
                f"the chat template is not a valid program: {error}", hint=_DAMAGED
            ) from error
        raise OtterError(
            f"the chat template refuses these messages: {type(error).__name__}: {error}",
            hint="check the order of roles, and whether the template takes such messages "
            "(contents as lists of parts, tool calls)",
        ) from error
    if not tokenize and len(output) > _OWN_CHARACTERS + size * _MAX_REPETITIONS:
        raise OtterError(
            f"the chat template writes {len(output):,} characters for messages of {size:,}",
            hint=_LOOPS,
        )
    return output


def _check_size(template: Any) -> None:
    """A template is a program from a stranger. Raises OtterError where a single operation could
    take so long that no time limit stops it."""
    for text in template.values() if isinstance(template, dict) else [template]:
        if not isinstance(text, str):
            raise OtterError(f"the chat template is {type(text).__name__}, not text", hint=_DAMAGED)
        if len(text) > _MAX_TEMPLATE_CHARACTERS:
            raise OtterError(f"the chat template is {len(text):,} characters long", hint=_DAMAGED)
        _check_numbers(text)


@lru_cache(maxsize=8)
def _check_numbers(template: str) -> None:
    from jinja2 import Environment, TemplateError

    try:
        tokens = list(Environment(autoescape=True).lex(template))
    except TemplateError:
        return  # the error message is better when it is applied
    for _, kind, value in tokens:
        if value == "**" or (kind in ("integer", "float") and float(value) > _MAX_NUMBER):
            raise OtterError(
                f"the chat template uses {value}, and such numbers can take hours to compute",
                hint=_LOOPS,
            )


Message = Mapping[str, Any]

# Keys that name the author. A message needs more than these.
_AUTHOR_KEYS = {"role", "name", "tool_call_id"}
_EXAMPLE = 'messages are a list like [{"role": "user", "content": "Hello"}]'


def read_messages(record: Record, column: str, role: str | None = None) -> list[Message]:
    """The messages of a column. With `role` a plain text is one message of that role.

    Raises OtterError, with row, column and key, for anything else.
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
    """The messages of a column, for a model to answer."""
    messages = read_messages(record, column, "user")
    if messages[-1]["role"] == "assistant":
        raise record.error(
            f"{column!r} ends with the assistant's own message, and a prompt does not",
            "leave the answer out of the column",
        )
    return messages


def shared_question(dialogues: list[list[Message]]) -> list[Message]:
    """The shared beginning of all dialogues, if it ends with a message to answer."""
    shared: list[Message] = []
    for first, *rest in zip(*dialogues, strict=False):
        if any(message != first for message in rest):
            break
        shared.append(first)
    return shared if shared and shared[-1]["role"] in ("user", "tool") else []


def last_text(messages: list[Message]) -> str:
    """The text of the last message, or its text parts, for people and for comparison."""
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
    The messages of the column `context`, if any, come before each of them. A plain text is a user's
    message in `context`, and the assistant's in `columns`.
    """

    table: TableLike
    tokenizer: Any
    columns: Sequence[str]
    context: str | None = None

    def __str__(self) -> str:
        return str(self.table)

    def records(self) -> Iterator[Record]:
        try:
            require_template(self.tokenizer)
        except OtterError as error:
            raise OtterError(f"{self}: chat is on, and {error.what}", hint=error.hint) from error
        for record in read_records(self.table):
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
                    f"the chat template writes {self.context!r} differently before {column!r}",
                    "put the whole dialogue into the columns, and leave prompt out",
                )
            values[column] = text
        if self.context is not None:
            values[self.context] = start
        return replace(record, values=values)

    def _dialogue(self, record: Record, column: str, before: list[Message]) -> list[Message]:
        messages = read_messages(record, column, "assistant" if before else None)
        # Some data sets repeat the prompt in the answers.
        repeated = len(messages) > len(before) and messages[: len(before)] == before
        return messages if repeated else [*before, *messages]

    def _render(
        self, record: Record, messages: list[Message], generate: bool = False, prompt: str = ""
    ) -> ChatText:
        try:
            return render_chat(self.tokenizer, messages, generate=generate, prompt=prompt)
        except OtterError as error:
            raise record.error(error.what, error.hint) from error
