"""Requests inside the engine: which row of the batch wants which signal outputs, and guidance.

vLLM gives a logits processor the logits alone. This one takes the states behind them from the
model, which runs in the same process and step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.decorators import mark_unbacked
from vllm.exceptions import VLLMValidationError
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops.logprobs import batched_count_greater_than

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.engine_checks import ANNOUNCED_SIGNALS, find_model, signal_outputs_of
from otter_cli.serving.vllm.requests import (
    ARGUMENT_PREFIX,
    FIRST_VIRTUAL_ID,
    GuideRequest,
    SignalOutputs,
    SignalRequest,
    StopBound,
    read_request,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from otter_cli.serving.vllm.model import StepStates


def guide_row(logits: Tensor, guide: GuideRequest, model: Any, row: int) -> Tensor:
    """`logit + sum of strength * score` over the best candidates, minus infinity for other tokens;
    [vocab]. See docs/method.md, "Guided decoding". A closed gate leaves the logits as they are."""
    if not _gate_is_open(logits, guide):
        return logits
    index = torch.tensor([row], device=logits.device)
    guided = logits.clone()
    for name, strength in guide.strengths:
        guided += strength * model.read_signal(name, model.last_step, index)[0]
    if not 0 < guide.candidates < len(logits):
        return guided
    best = logits.topk(guide.candidates).indices
    return torch.full_like(logits, -math.inf).scatter(0, best, guided[best])


def _gate_is_open(logits: Tensor, guide: GuideRequest) -> bool:
    if guide.entropy_above is None and guide.top_below is None:
        return True
    probabilities = logits.softmax(-1)
    entropy = float(torch.special.entr(probabilities).sum())
    above, below = guide.entropy_above, guide.top_below
    return (above is None or entropy > above) and (
        below is None or float(probabilities.max()) < below
    )


@dataclass(frozen=True)
class StopRow:
    """A row whose answer ends at a bound. `generated`: its tokens, a list that the engine extends.
    `end_token`: what the engine ends an answer at."""

    stops: tuple[StopBound, ...]
    generated: list[int]
    end_token: int


class OtterProcessor(LogitsProcessor):
    """Does nothing for models that are no grafts, and for requests without our arguments."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.vllm_config = vllm_config
        config = vllm_config.model_config.hf_config
        self.grafted = hasattr(config, "otter")
        self.outputs = signal_outputs_of(config) if self.grafted else SignalOutputs(())
        self.rows: dict[int, SignalRequest] = {}
        # Rows that want log-probabilities; true: also those of the best tokens.
        self.logprob_rows: dict[int, bool] = {}
        self.stop_rows: dict[int, StopRow] = {}
        # Signals of all rows of this step that were read for `stop_rows`. They are returned, too:
        # read for fewer rows, a value may be rounded to the other side of its bound.
        self.read_scores: dict[str, Tensor] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Runs in the process that answers clients: an error becomes status 400."""
        arguments = sampling_params.extra_args
        if not any(key.startswith(ARGUMENT_PREFIX) for key in arguments or {}):
            return
        outputs = ANNOUNCED_SIGNALS.get("graft", SignalOutputs(()))
        if outputs is None:
            raise VLLMValidationError(
                "this engine drafts, and vLLM loads no logits processors beside a drafter: there "
                "are neither signals nor guidance; serve the graft without --speculative-config"
            )
        try:
            request = read_request(arguments, outputs)
            _check_room(len(request.outputs) if request else 0, sampling_params)
            _check_end(request, sampling_params)
        except OtterError as error:
            raise VLLMValidationError(f"{error.what}; {error.hint}") from None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._new)
        process_dict_updates(self.logprob_rows, batch_update, self._wants_best)
        process_dict_updates(self.stop_rows, batch_update, self._stop_row)
        if batch_update is not None and self.grafted:
            find_model(self.vllm_config).request_rows(tuple(sorted(self.rows)))

    def _new(self, params: SamplingParams, *_: Any) -> SignalRequest | None:
        return read_request(params.extra_args, self.outputs)

    def _wants_best(self, params: SamplingParams, *_: Any) -> bool | None:
        request = read_request(params.extra_args, self.outputs)
        if params.logprobs is None or (request and request.without_logprobs):
            return None
        return params.logprobs != (len(request.outputs) if request else 0)

    def _stop_row(
        self, params: SamplingParams, _: list[int] | None, generated: list[int]
    ) -> StopRow | None:
        request = read_request(params.extra_args, self.outputs)
        end_token = params.eos_token_id
        if end_token is None:
            end_token = next(iter(params.stop_token_ids or ()), None)
        if request is None or not request.stops or end_token is None:
            return None
        return StopRow(request.stops, generated, end_token)

    def apply(self, logits: Tensor) -> Tensor:
        self.read_scores = {}
        guides = {row: r.guide for row, r in self.rows.items() if r.guide is not None}
        if guides:
            model = find_model(self.vllm_config)
            self._last_step(logits)
            for row, guide in guides.items():
                logits[row] = guide_row(logits[row], guide, model, row)
        if self.stop_rows:
            self._end_rows(logits)
        return logits

    def _end_rows(self, logits: Tensor) -> None:
        """Leaves the end token alone to rows whose text has crossed a bound. A prompt crosses
        none."""
        step = self._last_step(logits)
        names = {stop.config.name for row in self.stop_rows.values() for stop in row.stops}
        model = find_model(self.vllm_config)
        for name in names:
            scores = model.read_signal(name, step, slice(None))
            self.read_scores[name] = scores[:, None] if scores.ndim == 1 else scores
        numbers = {name: scores.tolist() for name, scores in self.read_scores.items()}
        for row, stopped in self.stop_rows.items():
            if stopped.generated and any(
                stop.ends(numbers[stop.config.name][row][self.outputs.outputs[stop.place].index])
                for stop in stopped.stops
            ):
                logits[row] = -math.inf
                logits[row, stopped.end_token] = 0.0

    @property
    def only_outputs(self) -> bool:
        """Whether some row of this step wants signal outputs, and none wants the best tokens."""
        return not any(self.logprob_rows.values()) and any(r.outputs for r in self.rows.values())

    def outputs_without_best(self, logprobs: Tensor | None, sampled: Tensor) -> LogprobsTensors:
        """What stock vLLM gathers, without the best tokens and with the signal outputs. `logprobs`:
        None where no row wants log-probabilities."""
        token, groups = sampled[:, None].long(), self._groups()
        if logprobs is None:
            chosen, ranks = _no_logprobs(len(token), token.device)
        else:
            chosen = logprobs.gather(-1, token)
            mark_unbacked(logprobs, 0)  # as stock does: another batch size compiles nothing anew
            mark_unbacked(chosen, 0)
            ranks = batched_count_greater_than(logprobs, chosen)
        ((places, without_logprobs), rows), *others = groups.items()
        if not others and len(rows) == len(token) and without_logprobs == (logprobs is None):
            virtual = _virtual_ids(places, token.device).expand(len(token), -1)
            ids = torch.cat([token.int(), virtual], -1)
            values = self._read(places, self._last_step(token), slice(None), sampled)
            return LogprobsTensors(ids, torch.cat([chosen, values], -1), ranks)
        room = (0, max(len(places) for places, _ in groups))
        padded = LogprobsTensors(F.pad(token, room).int(), F.pad(chosen, room), ranks)
        return self.add_outputs(padded, sampled)

    def add_outputs(self, stock: LogprobsTensors, sampled: Tensor) -> LogprobsTensors:
        """Puts the outputs right after the sampled token; the best other tokens move back. `stock`:
        [rows, 1 + n] ids and log-probabilities. Every row keeps as many best tokens as it asked
        for. In rows without log-probabilities these read -inf and the rank 0, whatever other rows
        ask for."""
        groups = self._groups()
        if not groups:
            return stock
        # Rows may be too narrow where other requests name the tokens whose logprobs they want.
        lacking = 1 + max(len(places) for places, _ in groups) - stock.logprobs.shape[1]
        if lacking > 0:
            wider = [F.pad(part, (0, lacking)) for part in stock[:2]]
            stock = LogprobsTensors(*wider, stock.selected_token_ranks)
        ids, values, ranks = (part.clone() for part in stock[:3])
        step = self._last_step(ids)
        for (places, without_logprobs), rows in groups.items():
            index, end = torch.tensor(rows, device=ids.device), 1 + len(places)
            kept = ids.shape[1] - len(places)
            ids[index, end:] = stock.logprob_token_ids[index, 1:kept]
            values[index, end:] = stock.logprobs[index, 1:kept]
            if without_logprobs:
                ids[index, end:], values[index], ranks[index] = ids[index, :1], -torch.inf, 0
            ids[index, 1:end] = _virtual_ids(places, ids.device).expand(len(rows), -1)
            values[index, 1:end] = self._read(places, step, index, sampled[index])
        return stock._replace(logprob_token_ids=ids, logprobs=values, selected_token_ranks=ranks)

    def _groups(self) -> dict[tuple[tuple[int, ...], bool], list[int]]:
        """Rows by their outputs, and by whether they want no log-probabilities. Rows are handled in
        groups because a step is short, and each operation shows in its time."""
        groups: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for row, request in self.rows.items():
            if request.outputs:
                groups.setdefault((request.outputs, request.without_logprobs), []).append(row)
        return groups

    def _last_step(self, rows: Tensor) -> StepStates:
        step: StepStates | None = find_model(self.vllm_config).last_step
        assert step is not None and len(step.base_state) == len(rows)
        return step

    def _read(
        self, places: tuple[int, ...], step: StepStates, rows: Tensor | slice, sampled: Tensor
    ) -> Tensor:
        """The outputs at `places` of rows that ask for the same, [rows, outputs]."""
        model, outputs = find_model(self.vllm_config), [self.outputs.outputs[i] for i in places]
        scores = {
            name: self.read_scores[name][rows]
            if name in self.read_scores
            else self._of_sampled(name, model.read_signal(name, step, rows), sampled)
            for name in dict.fromkeys(output.signal for output in outputs)
        }
        return torch.stack([scores[o.signal][:, o.index] for o in outputs], -1)

    def _of_sampled(self, name: str, scores: Tensor, sampled: Tensor) -> Tensor:
        """[rows, outputs]; of action values, the chosen token's."""
        if self.outputs.signals[name].kind == "vocabulary":
            return scores.gather(-1, sampled[:, None].long())
        return scores[:, None] if scores.ndim == 1 else scores


@lru_cache(maxsize=64)
def _no_logprobs(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-probabilities [rows, 1] and ranks [rows] where no row wants any."""
    none = torch.full((rows, 1), -torch.inf, device=device)
    return none, torch.zeros(rows, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def _virtual_ids(places: tuple[int, ...], device: torch.device) -> Tensor:
    """The token ids under which outputs travel."""
    return torch.tensor(places, device=device, dtype=torch.int32) + FIRST_VIRTUAL_ID


def _check_room(count: int, sampling_params: SamplingParams) -> None:
    logprobs = sampling_params.logprobs
    if count and sampling_params.logprob_token_ids:
        raise OtterError(
            "signals travel as log-probabilities, in the places of those of logprob_token_ids",
            hint="make two requests",
        )
    if count and (logprobs is None or logprobs < count):
        raise OtterError(
            f"{count} signal outputs travel as log-probabilities, and the request asks for "
            f"{logprobs or 0} of those",
            hint=f"logprobs={count} (chat: logprobs=true, top_logprobs={count + 1}), or use "
            "otter_cli.serving.vllm.client",
        )


def _check_end(request: SignalRequest | None, sampling_params: SamplingParams) -> None:
    if request and request.stops and sampling_params.ignore_eos:
        raise OtterError(
            "otter_stop_when ends an answer by the engine's end token, and the request ignores it",
            hint="leave out ignore_eos",
        )
