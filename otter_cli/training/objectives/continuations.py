"""Continuations of states, sampled from the base and labelled: the targets of `rollouts`.

A label is stored as soon as it is computed, so a stopped run continues. What is sampled for a state
depends on the seed and the state alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.core.atomic import write_json, writer_lock
from otter_cli.core.console import progress, say
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLinesWriter, read_jsonlines
from otter_cli.core.process import derive_seed
from otter_cli.data.chat_template import ChatText, close_turn, turn_closing
from otter_cli.data.encoding import state_key

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.scorers.text_scorer import Labeller


# The labels of each state, by its key: one per continuation.
StateLabels = dict[str, list[float]]
StoredRecord = dict[str, Any]


def complete_records(
    path: Path,
    key: str,
    wanted: Iterable[str],
    compute: Callable[[list[str]], Iterator[StoredRecord]],
    *,
    label: str,
    done: str,
    check: Callable[[StoredRecord], None] = lambda record: None,
) -> dict[str, StoredRecord]:
    """The record of each of the `wanted` values of `key`, from a jsonl file. `compute` yields the
    missing ones, which are appended one by one: after an interruption the next call continues.

    `label` is for the progress bar, `done` for the message about stored records ("8 of 12 prompts
    are continued already"). `check` raises OtterError for a stored record that cannot be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(wanted))
    with writer_lock(path):
        records = {r[key]: r for r in read_jsonlines(path)} if path.exists() else {}
        for record in records.values():
            check(record)
        missing = [value for value in wanted if value not in records]
        if missing:
            if len(missing) < len(wanted):
                say(f"{len(wanted) - len(missing)} of {len(wanted)} {done} already")
            with JsonLinesWriter(path) as lines, progress(len(missing), label) as advance:
                for record in compute(missing):
                    lines.append(record)
                    records[record[key]] = record
                    advance(1)
    return {value: records[value] for value in wanted}


@dataclass(frozen=True)
class RolloutSettings:
    """Everything but the states that decides the labels. `base` and `labeller` are digests. `chat`:
    the states are of dialogues, and a labeller that reads tokens reads theirs."""

    base: Mapping[str, str]
    labeller: str
    label: str | None
    eos: bool
    reads: str
    samples: int
    tokens: int
    temperature: float
    seed: int
    chat: bool = False

    @property
    def described(self) -> dict[str, Any]:
        # Without `chat` the digest is that of labels from before dialogues were supported.
        return {key: value for key, value in asdict(self).items() if self.chat or key != "chat"}

    @property
    def name(self) -> str:
        return f"rollouts-{sha256_json(self.described)[:16]}"


def label_states(
    states: Iterable[list[int]],
    settings: RolloutSettings,
    folder: Path,
    store: Path,
    make_labeller: Callable[[], Labeller],
    device: str,
) -> StateLabels:
    """The labels of all states: the stored ones, and new ones by rollouts of the base in `folder`.
    Raises OtterError for a file in `store` that was changed by hand."""
    prefixes = {state_key(prefix): prefix for prefix in states}
    path = store / f"{settings.name}.jsonl"
    store.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), settings.described)

    def compute(missing: list[str]) -> Iterator[StoredRecord]:
        worker = _RolloutWorker(settings, folder, make_labeller(), device)
        for key in missing:
            yield {"state": key, **worker.rollouts(prefixes[key])}

    def check(record: StoredRecord) -> None:
        key, labels = record["state"], record["labels"]
        if len(labels) != settings.samples:
            raise OtterError(
                f"{path}: state {key[:12]} has {len(labels)} labels, not {settings.samples}",
                hint="the file was changed by hand: remove it, and its states are drawn again",
            )

    records = complete_records(
        path,
        "state",
        prefixes,
        compute,
        label="rollouts",
        done="states are labelled",
        check=check,
    )
    return {key: record["labels"] for key, record in records.items()}


class _RolloutWorker:
    """The base and the labeller on one state at a time, so that no other state changes a bit of its
    numbers."""

    def __init__(
        self, settings: RolloutSettings, folder: Path, labeller: Labeller, device: str
    ) -> None:
        from otter_cli.model.load import load_base, load_tokenizer

        self.settings, self.labeller = settings, labeller
        self.base: Any = load_base(folder).to(device).eval()
        self.tokenizer: Any = load_tokenizer(folder)

    def rollouts(self, prefix: list[int]) -> StoredRecord:
        settings, key = self.settings, state_key(prefix)
        seeds = [
            derive_seed("rollout", settings.seed, key, sample) % 2**63
            for sample in range(settings.samples)
        ]
        uniform = np.stack([np.random.default_rng(s).random(settings.tokens) for s in seeds])
        eos = self.tokenizer.eos_token_id
        tokens = sample_continuations(self.base, prefix, uniform, settings.temperature, eos)
        start = prefix if settings.reads == "text" else []
        texts = [self._text([*start, *continuation]) for continuation in tokens]
        return {"tokens": tokens, "labels": self.labeller(texts)}

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not (self.settings.chat and self.settings.reads == "text"):
            return text
        if self.settings.eos:
            ids = close_turn(ids, self._turn_closing, self.tokenizer.eos_token_id)
        return ChatText(text, ids)

    @cached_property
    def _turn_closing(self) -> list[int]:
        return turn_closing(self.tokenizer)


def sample_continuations(
    base: Any, prefix: Sequence[int], uniform: np.ndarray, temperature: float, eos: int | None
) -> list[list[int]]:
    """One continuation for each row of uniform numbers [samples, tokens], by the inverse of the
    distribution function; up to EOS, which is left out."""
    import torch
    from transformers import DynamicCache

    with torch.inference_mode():
        cache, device = DynamicCache(config=base.config), base.device
        draws = torch.from_numpy(uniform).to(device)
        out = base(torch.tensor([prefix], device=device), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(uniform))
        logits = out.logits[:, -1].expand(len(uniform), -1)
        sampled: list[Tensor] = []
        for step in range(uniform.shape[1]):
            if step:
                out = base(sampled[-1], past_key_values=cache, logits_to_keep=1)
                logits = out.logits[:, -1]
            cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
            target = draws[:, step, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, target, right=True)
            sampled.append(token.clamp(max=cumulative.shape[-1] - 1))
        rows = torch.cat(sampled, 1).tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]
