"""What each further row of a decoding step costs: a table and a curve from 1 to 32 rows.

A step is bound by memory while its weights are read once for all of its rows, so that a further
row should cost little. Rows are candidates of one next token (V-style guidance), positions of one
text (verifying a draft), or texts of a batch, each with a cache of its own (best of n). Whole steps
and their parts take turns in one run. A part is a measured step, or the difference of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from otter_cli.benchmarks.metrics.estimates import Estimate
from otter_cli.benchmarks.overhead.measured_models import OverheadRun
from otter_cli.benchmarks.overhead.measuring import (
    CountedWork,
    PassShape,
    StepFunction,
    StepTimes,
    interleaved,
)
from otter_cli.benchmarks.overhead.prefill_decode import random_tokens
from otter_cli.benchmarks.overhead.result import MeasuredGroup, MeasuredLine, median_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.benchmarks.overhead.counted_calls import CountedCalls
    from otter_cli.decoding.kv_session import HiddenStates
    from otter_cli.decoding.session import DecodingSession

ROW_COUNTS = (1, 2, 3, 4, 6, 8, 16, 32)
RowKind = Literal["candidates", "draft", "batch"]
KINDS: dict[RowKind, str] = {
    "candidates": "Rows: candidates of one next token",
    "draft": "Rows: positions of one text, a draft",
    "batch": "Rows: texts of a batch, a cache each",
}
_REFERENCE = "1 row, base alone"
_SCORES = ("value", "classes")  # kinds of signals that are read at every row


@dataclass(frozen=True)
class RowSteps:
    """The steps of one kind and number of rows, after the run's context. `reset` follows a round,
    untimed: it takes the kept token out of the caches again."""

    run: OverheadRun
    kind: RowKind
    rows: int

    def with_insertion(self) -> tuple[StepFunction, StepFunction]:
        """A whole step: base, insertion, its scores at every row, and the logits that are read."""
        from otter_cli.decoding.session import DecodingSession

        model = self.run.models.graft
        session = self._prefilled(DecodingSession(model))
        names = [name for name, c in model.signal_configs.items() if c.kind in _SCORES]
        tokens = self.tokens()

        def step() -> None:
            states = self._feed(session, tokens)
            dict(states.inserted)  # the stream of a single token may wait until it is read
            for name in names:
                session.read(name, states)
            session.logits(self._read_states(states))

        return step, partial(self._reset, session)

    def of_the_base(self) -> tuple[StepFunction, StepFunction]:
        """The session's step without the insertion and without logits."""
        from otter_cli.decoding.session import DecodingSession

        session = self._prefilled(DecodingSession(self.run.models.graft, stream=False))
        return partial(self._feed, session, self.tokens()), partial(self._reset, session)

    def of_the_body(self) -> tuple[StepFunction, StepFunction]:
        """The same rows through transformers' decoder alone, with a mask made before."""
        from otter_cli.decoding.kv_slots import full_cache

        models = self.run.models
        decoder: Any = models.stock.get_submodule(models.shape.family.decoder)
        cache: Any = full_cache(models.stock.config)
        prompt, tokens = self._prompts(), self._shaped(self.tokens())
        context, n = prompt.shape[1], tokens.shape[1]
        decoder(input_ids=prompt, past_key_values=cache, use_cache=True)
        positions = tokens.new_full(tokens.shape, context)
        if self.kind == "draft":
            positions = positions + tokens.new_tensor(range(n))
        arguments = {"attention_mask": self._mask(context, n), "position_ids": positions}
        step = partial(
            decoder, input_ids=tokens, past_key_values=cache, use_cache=True, **arguments
        )
        return step, lambda: [layer.truncate(context) for layer in cache.layers]

    def of_the_attention(self) -> StepFunction | None:
        """The attention function of every layer over a cache of its own, as a session calls it.
        None where the base's attention is no registered function."""
        import torch
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        from otter_cli.model.grouped_attention import attention_to_run, unrepeated_keys

        models = self.run.models
        name = models.stock.config._attn_implementation
        if name not in ALL_ATTENTION_FUNCTIONS:
            return None
        shape, family = models.shape, models.shape.family
        texts, n = self._shaped(self.tokens()).shape
        context = self.run.settings.context
        layers: Any = models.stock.get_submodule(family.layers)
        path = family.attention.module
        modules = [layer.get_submodule(path) for layer in layers if _has_module(layer, path)]
        like: dict[str, Any] = {"dtype": models.stock.dtype, "device": models.stock.device}
        query = torch.randn(texts, n, shape.heads, shape.head_dim, **like).transpose(1, 2)
        slots = texts, shape.kv_heads, context + n, shape.head_dim
        entries = [(torch.randn(slots, **like), torch.randn(slots, **like)) for _ in modules]
        mask = self._mask(context, n)
        if mask is not None and mask.ndim == 2:
            mask = _causal(context, n, mask.device)

        def step() -> None:
            with unrepeated_keys():
                attend = attention_to_run(ALL_ATTENTION_FUNCTIONS[name])
                for module, (key, value) in zip(modules, entries, strict=True):
                    attend(module, query, key, value, mask)

        return step

    def tokens(self) -> Tensor:
        return random_tokens(self.run.models, 1, self.rows, "rows")

    def counted(self) -> CountedCalls:
        """The counts of a whole step, the second of a session: the first packs weights."""
        from otter_cli.benchmarks.overhead.counted_calls import CountedCalls
        from otter_cli.decoding.session import DecodingSession

        model = self.run.models.graft
        session = self._prefilled(DecodingSession(model))
        output: Any = model.base.get_submodule(model.shape.family.head)

        def step() -> None:
            states = self._feed(session, self.tokens())
            dict(states.inserted)
            session.logits(self._read_states(states))

        step()
        self._reset(session)
        with CountedCalls(output.weight, session.cache) as counts:
            step()
        return counts

    def work(self, *, inserted: bool) -> CountedWork:
        """Bytes and operations by count."""
        models, settings = self.run.models, self.run.settings
        texts, n = (self.rows, 1) if self.kind == "batch" else (1, self.rows)
        shape = PassShape(texts, n, settings.context, models.stock.dtype.itemsize)
        base = models.base_work(shape)
        if self.kind == "draft":  # every position is compared with the draft
            head = models.shape.vocab * models.shape.hidden
            base = base + CountedWork(2 * head * (self.rows - 1), 0)
        return base + models.inserted_work(shape) if inserted else base

    def _prompts(self) -> Tensor:
        prompt = random_tokens(self.run.models, 1, self.run.settings.context, "prompt")
        return prompt.expand(self.rows, -1) if self.kind == "batch" else prompt

    def _prefilled(self, session: DecodingSession) -> DecodingSession:
        session.prefill(self._prompts().tolist())
        return session

    def _shaped(self, tokens: Tensor) -> Tensor:
        return tokens.t() if self.kind == "batch" else tokens

    def _feed(self, session: DecodingSession, tokens: Tensor) -> HiddenStates:
        """Feeds the rows and keeps one token of each text: the last candidate, so that its cache
        entry moves, or the first position of a draft."""
        if self.kind == "batch":
            return session.step(tokens[0])
        if self.kind == "candidates":
            states = session.extend_candidates(tokens)
            session.keep_candidate(tokens.new_tensor([self.rows - 1]))
            return states
        states = session.extend(tokens)
        session.keep(tokens.new_tensor([1]))
        return states

    def _reset(self, session: DecodingSession) -> None:
        session.crop(self._prompts().new_ones(len(session.positions)))

    def _read_states(self, states: HiddenStates) -> HiddenStates:
        """The states whose logits are read: the winner's alone, of candidates."""
        return states.last() if self.kind == "candidates" else states

    def _mask(self, context: int, n: int) -> Any:
        """As the session gives it: of candidates each sees the context and itself."""
        import torch

        device = self.run.models.stock.device
        if self.kind != "candidates":
            texts = self.rows if self.kind == "batch" else 1
            every = torch.ones(texts, context + n, dtype=torch.long, device=device)
            return None if n == 1 else every
        from otter_cli.model.masks import attention_masks

        seen = torch.ones(n, context, dtype=torch.bool, device=device)
        own = torch.eye(n, dtype=torch.bool, device=device)
        visible = torch.cat([seen, own], 1)[None]
        return attention_masks(visible, None, [None], self.run.models.stock.dtype)


def _has_module(layer: Any, path: str) -> bool:
    return path in dict(layer.named_modules())


def _causal(context: int, n: int, device: Any) -> Tensor:
    import torch

    seen = torch.ones(n, context + n, dtype=torch.bool, device=device)
    return seen.tril(context)[None, None]


def row_cost_groups(run: OverheadRun) -> list[MeasuredGroup]:
    """A group for each kind of rows, measured in the same rounds."""
    import torch

    models = run.models
    steps: dict[str, StepFunction] = {}
    resets: list[Callable[[], Any]] = []
    kinds = {(kind, rows): RowSteps(run, kind, rows) for kind in KINDS for rows in ROW_COUNTS}
    with torch.no_grad():
        for (kind, rows), each in kinds.items():
            for part, (step, reset) in {
                "base": each.of_the_base(),
                "whole": each.with_insertion(),
                "body": each.of_the_body(),
            }.items():
                steps[f"{part} {kind} {rows}"] = step
                resets.append(reset)
            if (attention := each.of_the_attention()) is not None:
                steps[f"attention {kind} {rows}"] = attention
        for rows in ROW_COUNTS:
            state = torch.randn(
                1, rows, models.shape.hidden, dtype=models.stock.dtype, device=models.stock.device
            )
            steps[f"head {rows}"] = partial(models.graft.lm_head, state)

        def reset_all(outputs: Mapping[str, Any]) -> None:
            for reset in resets:
                reset()

        times = interleaved(
            steps,
            run.rounds,
            synchronise=run.synchronise,
            on_round=reset_all,
            warm_up=2,
            pace=run.pace,
            label="rows",
        )
        return [
            _group(kind, {rows: kinds[kind, rows] for rows in ROW_COUNTS}, times) for kind in KINDS
        ]


_NOTE = (
    "Steps after {} tokens of context, over a step of one row of the base alone. Floor: counted "
    "bytes and operations, insertion included. Body: transformers' own decoder, of which attention "
    "is a part, measured apart. Session: what the session adds to the body (masks, kept cache "
    "entries), less keys that it does not repeat. Body, product, session and insertion add up to "
    "the ratio, but for medians. A row more: what the base's step takes more, over the number of "
    "further rows."
)


def _group(kind: RowKind, all_steps: Mapping[int, RowSteps], times: StepTimes) -> MeasuredGroup:
    first = all_steps[1]
    run, reference = first.run, times[f"base {kind} 1"] + times["head 1"]
    least = run.rates.seconds(first.work(inserted=False))
    floors = {n: run.rates.seconds(s.work(inserted=True)) / least for n, s in all_steps.items()}
    one = MeasuredLine(
        name=_REFERENCE,
        milliseconds=1000 * float(np.median(reference)),
        ratio=median_ratio(reference, reference, _REFERENCE),
    )
    return MeasuredGroup(
        title=KINDS[kind],
        reference=_REFERENCE,
        per="step",
        notes=[_NOTE.format(run.settings.context)],
        x_axis="rows",
        lines=[one, *(_line(s, times, reference, floors[n]) for n, s in all_steps.items())],
    )


def _line(steps: RowSteps, times: StepTimes, reference: np.ndarray, floor: float) -> MeasuredLine:
    kind, rows = steps.kind, steps.rows
    name = "1 row" if rows == 1 else f"{rows} rows"
    whole, base, body = (times[f"{part} {kind} {rows}"] for part in ("whole", "base", "body"))
    # Of candidates, only the winner has logits.
    head = times["head 1" if kind == "candidates" else f"head {rows}"]
    parts = {
        "base alone": base + head,
        "body": body,
        "attention": times.get(f"attention {kind} {rows}"),
        "product over the vocabulary": head,
        "session": base - body,
        "insertion": whole - base - head,
    }
    figures: dict[str, float | Estimate] = {
        part: median_ratio(seconds, reference, f"{part}, {name}")
        for part, seconds in parts.items()
        if seconds is not None
    }
    if rows > 1:
        further = (base + head - reference) / (rows - 1)
        figures["a row more, share"] = median_ratio(further, reference, f"a row more, {name}")
    counts, work = steps.counted(), steps.work(inserted=True)
    figures |= {
        "kernel calls": float(counts.kernel_calls),
        "vocabulary rows": float(counts.vocabulary_rows),
        "copied from the cache, bytes": float(counts.copied_bytes),
        "counted, bytes": work.bytes,
        "operations, millions": work.flops / 1e6,
    }
    return MeasuredLine(
        name=name,
        milliseconds=1000 * float(np.median(whole)),
        ratio=median_ratio(whole, reference, f"{name} over one of the base"),
        floor=floor,
        x=rows,
        figures=figures,
    )
