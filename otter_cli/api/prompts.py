"""What a prompt may be in Python: text, messages, token ids, or a batch of any of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from torch import Tensor


def prompt_ids(
    tokenizer: Any, prompts: Any, attention_mask: Tensor | None = None
) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt, and whether a batch was given. Raises OtterError.

    A list of messages goes through the chat template, with the generation prompt; text is read as
    it is. Of tensors [batch, tokens] the positions where `attention_mask` is 1 count.
    """
    if hasattr(prompts, "ndim"):
        return _of_tensor(prompts, attention_mask)
    if attention_mask is not None:
        raise OtterError(
            "attention_mask goes with a tensor of token ids", hint="leave it out for text"
        )
    if isinstance(prompts, str):
        return [_of_text(tokenizer, prompts)], False
    if not isinstance(prompts, Sequence) or not prompts:
        raise OtterError(f"a prompt of type {type(prompts).__name__}", hint=_FORMS)
    if isinstance(prompts[0], Mapping):
        return [_of_messages(tokenizer, prompts)], False
    if isinstance(prompts[0], int):
        return [list(prompts)], False
    return [_alone(tokenizer, prompt) for prompt in prompts], True


def _alone(tokenizer: Any, prompt: Any) -> list[int]:
    """One prompt of a batch. Raises OtterError for a batch, whose other prompts would get lost."""
    ids, batch = prompt_ids(tokenizer, prompt)
    if batch:
        raise OtterError("a batch within a batch of prompts", hint=_FORMS)
    return ids[0]


def scored_ids(tokenizer: Any, text: Any) -> list[int]:
    """Token ids of the one text that is to be scored. Raises OtterError.

    Messages are a dialogue up to the token that ends its last turn, where training reads it: no
    generation prompt comes after it.
    """
    if isinstance(text, Sequence) and text and isinstance(text[0], Mapping):
        from otter_cli.data.chat_template import chat, turn_length

        dialogue = chat(tokenizer, text)
        return list(dialogue.ids[: turn_length(tokenizer, dialogue.ids)[0]])
    ids = prompt_ids(tokenizer, text)[0]
    if len(ids) != 1:
        raise OtterError("score reads one text at a time", hint="call it for each text")
    if not ids[0]:
        raise OtterError("the text has no tokens", hint="give a text with a word in it")
    return ids[0]


_FORMS = "give text, a list of messages, token ids, or a list of these"


def _of_text(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _of_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    from otter_cli.data.chat_template import chat

    return list(chat(tokenizer, messages, generate=True).ids)


def _of_tensor(ids: Tensor, mask: Tensor | None) -> tuple[list[list[int]], bool]:
    if ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
        shape = list(ids.shape) if mask is None else [list(ids.shape), list(mask.shape)]
        raise OtterError(
            f"token ids of shape {shape}", hint="give [batch, tokens], and a mask of that shape"
        )
    if mask is None:
        return [row.tolist() for row in ids], True
    # `== 1` holds for tensors and for numpy's arrays.
    return [row[kept].tolist() for row, kept in zip(ids, mask == 1, strict=True)], True
