"""The base's own continuations of prompts, stored as they are made.

Prompts are checked before the base writes a token. A run that was stopped goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.atomic import writer_lock
from otter_cli.core.console import progress, say
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLinesWriter, read_jsonlines
from otter_cli.data.chat_template import ChatText
from otter_cli.data.datasets import state_key
from otter_cli.data.prompts import Prompt, read_prompts
from otter_cli.families.token_ids import check_token_ids

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM


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
        check_token_ids([ids], model.shape, f"{where}: prompt")
        kept.setdefault(state_key(ids), TeachingPrompt(prompt, str(text), ids))
    return list(kept.values())


# Rows that are decoded side by side: a step of so many costs little more than one of a few.
_ROWS_AT_ONCE = 32

Continuations = dict[str, list[list[int]]]


@dataclass(frozen=True)
class ContinuationSettings:
    """How the base writes: `samples` continuations of each prompt, of up to `tokens` tokens."""

    samples: int = 4
    tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "tokens"):
            if getattr(self, name) < 1:
                raise OtterError(f"{name} is {getattr(self, name)}", hint="give at least 1")
        if not self.temperature > 0:
            raise OtterError(
                f"temperature is {self.temperature}", hint="equal texts teach nothing: above 0"
            )


def write_continuations(
    model: OtterForCausalLM,
    prompts: Sequence[Sequence[int]],
    drawing: ContinuationSettings,
    base: Mapping[str, str],
    store: Path,
) -> Continuations:
    """Token ids of the continuations of each prompt, by `state_key(prompt)`; end tokens included.

    `base`: the digests that say which base wrote. Texts that `store` has from before are kept, so
    that a run that was stopped goes on. Raises OtterError.
    """
    name = sha256_json({"base": dict(base), **asdict(drawing)})[:16]
    wanted = {state_key(list(prompt)): list(prompt) for prompt in prompts}
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"texts-{name}.jsonl"
    with writer_lock(path):
        written = _stored_continuations(path)
        missing = [key for key in wanted if key not in written]
        if missing and written:
            say(f"{len(wanted) - len(missing)} of {len(wanted)} prompts are continued already")
        # Prompts of one length need no padding beside one another.
        missing.sort(key=lambda key: len(wanted[key]))
        each = max(1, _ROWS_AT_ONCE // drawing.samples)
        with JsonLinesWriter(path) as lines, progress(len(missing), "the base writes") as advance:
            for start in range(0, len(missing), each):
                keys = missing[start : start + each]
                for key, rows in zip(keys, _generate(model, keys, wanted, drawing), strict=True):
                    lines.append({"state": key, "tokens": rows})
                    written[key] = rows
                advance(len(keys))
    return {key: written[key] for key in wanted}


def _generate(
    model: OtterForCausalLM,
    keys: Sequence[str],
    wanted: Mapping[str, list[int]],
    drawing: ContinuationSettings,
) -> list[list[list[int]]]:
    from otter_cli.decoding.generate import generate
    from otter_cli.decoding.sampling import Sampling

    sampling = Sampling(drawing.tokens, drawing.temperature, top_p=drawing.top_p, seed=drawing.seed)
    rows = generate(model, [wanted[key] for key in keys for _ in range(drawing.samples)], sampling)
    tokens = [row.tokens for row in rows]
    return [tokens[i : i + drawing.samples] for i in range(0, len(tokens), drawing.samples)]


def _stored_continuations(path: Path) -> Continuations:
    if not path.exists():
        return {}
    return {str(record["state"]): record["tokens"] for record in read_jsonlines(path)}
