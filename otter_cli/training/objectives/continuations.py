"""Continuations of states, sampled from the base and labelled: the targets of `rollouts`.

Each label is stored when it is made, so a run that was stopped goes on from there. What is sampled
for a state depends on the seed and the state alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from otter_cli.data.datasets import state_key

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.scorers.labeller import Labeller


# Of each state, by its key, one label a continuation.
StateLabels = dict[str, list[float]]


@dataclass(frozen=True)
class RolloutSettings:
    """How continuations are drawn and what is labelled: all that decides the labels, but for the
    states. `base` and `labeller` are digests. `chat`: the states are of dialogues, and a labeller
    that reads tokens reads theirs."""

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
        # Labels from before there were dialogues keep their names.
        unsaid = set() if self.chat else {"chat"}
        return {key: value for key, value in asdict(self).items() if key not in unsaid}

    @property
    def name(self) -> str:
        return f"rollouts-{sha256_json(self.described)[:16]}"


def label_states(
    states: Iterable[list[int]],
    drawing: RolloutSettings,
    folder: Path,
    store: Path,
    make_labeller: Callable[[], Labeller],
    device: str,
) -> StateLabels:
    """Labels of all states: those that `store` has from before, and the others drawn from the base
    of `folder`, each written when it is whole. Stopped at any moment, it goes on from there."""
    wanted = {state_key(prefix): prefix for prefix in states}
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{drawing.name}.jsonl"
    with writer_lock(path):
        write_json(path.with_suffix(".json"), drawing.described)
        found = _stored_labels(path, drawing)
        missing = [key for key in wanted if key not in found]
        if missing:
            if len(missing) < len(wanted):
                say(f"{len(wanted) - len(missing)} of {len(wanted)} states are labelled already")
            worker = _RolloutWorker(drawing, folder, make_labeller(), device)
            with JsonLinesWriter(path) as lines, progress(len(missing), "rollouts") as advance:
                for key in missing:
                    record = worker.of(wanted[key])
                    lines.append({"state": key, **record})
                    found[key] = record["labels"]
                    advance(1)
    return {key: found[key] for key in wanted}


def _stored_labels(path: Path, drawing: RolloutSettings) -> StateLabels:
    if not path.exists():
        return {}
    found = {record["state"]: record["labels"] for record in read_jsonlines(path)}
    for key, labels in found.items():
        if len(labels) != drawing.samples:
            raise OtterError(
                f"{path}: state {key[:12]} has {len(labels)} labels, not {drawing.samples}",
                hint="the file was changed by hand: remove it, and its states are drawn again",
            )
    return found


class _RolloutWorker:
    """The base and the labeller at work on one state at a time: what else there is to do moves no
    bit of its numbers."""

    def __init__(
        self, drawing: RolloutSettings, folder: Path, labeller: Labeller, device: str
    ) -> None:
        from otter_cli.model.load import load_base, load_tokenizer

        self.drawing, self.labeller = drawing, labeller
        self.base: Any = load_base(folder).to(device).eval()
        self.tokenizer: Any = load_tokenizer(folder)

    def of(self, prefix: list[int]) -> dict[str, Any]:
        drawing, key = self.drawing, state_key(prefix)
        drawn = np.stack(
            [
                np.random.default_rng(
                    derive_seed("rollout", drawing.seed, key, sample) % 2**63
                ).random(drawing.tokens)
                for sample in range(drawing.samples)
            ]
        )
        ends = self.tokenizer.eos_token_id
        tokens = sample_continuations(self.base, prefix, drawn, drawing.temperature, ends)
        before = prefix if drawing.reads == "text" else []
        texts = [self._text([*before, *more]) for more in tokens]
        return {"tokens": tokens, "labels": self.labeller(texts)}

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        if not (self.drawing.chat and self.drawing.reads == "text"):
            return text
        if self.drawing.eos:
            ids = close_turn(ids, self._closing, self.tokenizer.eos_token_id)
        return ChatText(text, ids)

    @cached_property
    def _closing(self) -> list[int]:
        return turn_closing(self.tokenizer)


def sample_continuations(
    base: Any, prefix: list[int], drawn: np.ndarray, temperature: float, eos: int | None
) -> list[list[int]]:
    """A continuation for each row of uniform numbers `drawn` [samples, tokens], by the inverse of
    the distribution function: up to EOS, which is left out."""
    import torch
    from transformers import DynamicCache

    with torch.inference_mode():
        cache, device = DynamicCache(config=base.config), base.device
        uniform = torch.from_numpy(drawn).to(device)
        out = base(torch.tensor([prefix], device=device), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(drawn))
        logits = out.logits[:, -1].expand(len(drawn), -1)
        chosen: list[Tensor] = []
        for step in range(drawn.shape[1]):
            if step:
                out = base(chosen[-1], past_key_values=cache, logits_to_keep=1)
                logits = out.logits[:, -1]
            reached = (logits.double() / temperature).softmax(-1).cumsum(-1)
            at = uniform[:, step, None] * reached[:, -1:]
            token = torch.searchsorted(reached, at, right=True)
            chosen.append(token.clamp(max=reached.shape[-1] - 1))
        rows = torch.cat(chosen, 1).tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]
