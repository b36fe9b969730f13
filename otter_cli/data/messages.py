"""Messages of a dialogue as they stand in a column. What is in them goes to the template as it
is; only what no template could mean is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otter_cli.data.records import Record

Message = Mapping[str, Any]

# Keys that say whose message it is. A message of these alone says nothing.
_LABELS = {"role", "name", "tool_call_id"}
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
        if problem := _problem(message):
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


def _problem(message: Any) -> str:
    if not isinstance(message, Mapping):
        return f"{message!r:.40} is no object with 'role' and 'content'"
    role = message.get("role")
    if not isinstance(role, str) or not role:
        return f"'role' is {role!r:.40}, not a name" if "role" in message else "no 'role'"
    content = message.get("content")
    if content is None:
        said = {key for key, value in message.items() if value} - _LABELS
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
