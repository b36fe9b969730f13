"""The prompts that the base is to continue, checked before it writes a word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.prompts import Prompt, read_prompts
from otter_cli.data.states import state_key
from otter_cli.families.ids import check_ids

if TYPE_CHECKING:
    from otter_cli.model import OtterForCausalLM


@dataclass(frozen=True)
class TeachingPrompt:
    """`text` is what the base goes on from, `ids` its tokens."""

    prompt: Prompt
    text: str
    ids: list[int]


def teaching_prompts(
    path: Path, model: OtterForCausalLM, tokenizer: Any, *, chat: bool, new_tokens: int
) -> list[TeachingPrompt]:
    """The prompts of a file. Equal prompts count once: their texts would be the same rows again.

    Raises OtterError, with file and line, for a prompt that the base cannot continue. The longest
    are continued last, so without this check a prompt that is too long fails after hours.
    """
    window = model.shape.max_positions
    kept: dict[str, TeachingPrompt] = {}
    for prompt in read_prompts(path):
        text = prompt.written(tokenizer, chat, path)
        ids = list(text.ids) if isinstance(text, ChatText) else list(tokenizer(text)["input_ids"])
        where = f"{path}, line {prompt.line}"
        if not ids:
            raise OtterError(f"{where}: the prompt has no tokens", hint="remove the row")
        if len(ids) + new_tokens > window:
            raise OtterError(
                f"{where}: a prompt of {len(ids)} tokens and {new_tokens} new ones exceed the "
                f"base's window of {window}",
                hint="shorten the prompt, or lower --new-tokens",
            )
        check_ids([ids], model.shape, f"{where}: prompt")
        kept.setdefault(state_key(ids), TeachingPrompt(prompt, str(text), ids))
    return list(kept.values())
