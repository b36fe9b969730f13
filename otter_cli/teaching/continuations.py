"""The base's own continuations of prompts, stored as soon as they are written.

All prompts are checked before the base writes a token. A stopped run continues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.encoding import state_key
from otter_cli.data.prompts import Prompt, read_prompts
from otter_cli.families.token_ids import check_token_ids
from otter_cli.training.objectives.continuations import StoredRecord, complete_records

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM


@dataclass(frozen=True)
class TeachingPrompt:
    """`text` is what the base continues, `ids` its tokens."""

    prompt: Prompt
    text: str
    ids: list[int]


def teaching_prompts(
    path: Path, model: OtterForCausalLM, tokenizer: Any, *, chat: bool, new_tokens: int
) -> list[TeachingPrompt]:
    """The prompts of a file. Equal prompts count once, since their texts would be equal too.

    Raises OtterError, with file and line, for a prompt that the base cannot continue. The longest
    are continued last, so without this check a prompt that is too long would fail after hours.
    """
    window = model.shape.max_positions
    prompts: dict[str, TeachingPrompt] = {}
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
        prompts.setdefault(state_key(ids), TeachingPrompt(prompt, str(text), ids))
    return list(prompts.values())


# Rows that are decoded side by side. A step of 32 rows costs little more than one of a few.
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
                f"temperature is {self.temperature}",
                hint="use a temperature above 0: identical texts teach nothing",
            )


def write_continuations(
    model: OtterForCausalLM,
    prompts: Sequence[Sequence[int]],
    settings: ContinuationSettings,
    base: Mapping[str, str],
    store: Path,
) -> Continuations:
    """Token ids of the continuations of each prompt, by `state_key(prompt)`; end tokens included.

    `base`: the digests of the base that writes. Texts that `store` has are kept, so a stopped run
    continues. Raises OtterError.
    """
    name = sha256_json({"base": dict(base), **asdict(settings)})[:16]
    ids = {state_key(prompt): list(prompt) for prompt in prompts}

    def compute(missing: list[str]) -> Iterator[StoredRecord]:
        # Prompts of equal length need no padding beside one another.
        missing = sorted(missing, key=lambda key: len(ids[key]))
        prompts_at_once = max(1, _ROWS_AT_ONCE // settings.samples)
        for start in range(0, len(missing), prompts_at_once):
            keys = missing[start : start + prompts_at_once]
            rows = _generate(model, [ids[key] for key in keys], settings)
            for key, tokens in zip(keys, rows, strict=True):
                yield {"state": key, "tokens": tokens}

    path = store / f"texts-{name}.jsonl"
    label, done = "the base writes", "prompts are continued"
    records = complete_records(path, "state", ids, compute, label=label, done=done)
    return {key: record["tokens"] for key, record in records.items()}


def _generate(
    model: OtterForCausalLM, prompts: Sequence[list[int]], settings: ContinuationSettings
) -> list[list[list[int]]]:
    """The tokens of each sample of each prompt."""
    from otter_cli.decoding.generate import generate
    from otter_cli.decoding.sampling import Sampling

    sampling = Sampling(
        settings.tokens, settings.temperature, top_p=settings.top_p, seed=settings.seed
    )
    samples = settings.samples
    rows = generate(model, [prompt for prompt in prompts for _ in range(samples)], sampling)
    tokens = [row.tokens for row in rows]
    return [tokens[i : i + samples] for i in range(0, len(tokens), samples)]
