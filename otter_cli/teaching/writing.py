"""The base's own continuations of prompts, stored as they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.core.console import progress, say
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLines, read_jsonlines
from otter_cli.core.lock import writer_lock
from otter_cli.data.states import state_key

if TYPE_CHECKING:
    from otter_cli.model import OtterForCausalLM

# Rows that are decoded side by side: a step of so many costs little more than one of a few.
_ROWS = 32

Written = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Drawing:
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


def write_texts(
    model: OtterForCausalLM,
    prompts: Sequence[Sequence[int]],
    drawing: Drawing,
    base: Mapping[str, str],
    store: Path,
) -> Written:
    """Token ids of the continuations of each prompt, by `state_key(prompt)`; end tokens included.

    `base`: the digests that say which base wrote. Texts that `store` has from before are kept, so
    that a run that was stopped goes on. Raises OtterError.
    """
    name = sha256_json({"base": dict(base), **asdict(drawing)})[:16]
    wanted = {state_key(list(prompt)): list(prompt) for prompt in prompts}
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"texts-{name}.jsonl"
    with writer_lock(path):
        written = _known(path)
        missing = [key for key in wanted if key not in written]
        if missing and written:
            say(f"{len(wanted) - len(missing)} of {len(wanted)} prompts are continued already")
        # Prompts of one length need no padding beside one another.
        missing.sort(key=lambda key: len(wanted[key]))
        each = max(1, _ROWS // drawing.samples)
        with JsonLines(path) as lines, progress(len(missing), "the base writes") as advance:
            for start in range(0, len(missing), each):
                keys = missing[start : start + each]
                for key, rows in zip(keys, _write(model, keys, wanted, drawing), strict=True):
                    lines.append({"state": key, "tokens": rows})
                    written[key] = rows
                advance(len(keys))
    return {key: written[key] for key in wanted}


def _write(
    model: OtterForCausalLM, keys: Sequence[str], wanted: Mapping[str, list[int]], drawing: Drawing
) -> list[list[list[int]]]:
    from otter_cli.decoding import Sampling, generate

    sampling = Sampling(drawing.tokens, drawing.temperature, top_p=drawing.top_p, seed=drawing.seed)
    rows = generate(model, [wanted[key] for key in keys for _ in range(drawing.samples)], sampling)
    tokens = [row.tokens for row in rows]
    return [tokens[i : i + drawing.samples] for i in range(0, len(tokens), drawing.samples)]


def _known(path: Path) -> Written:
    if not path.exists():
        return {}
    return {str(record["state"]): record["tokens"] for record in read_jsonlines(path)}
