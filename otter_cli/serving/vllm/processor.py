"""Requests inside the engine: which row of the batch wants which signal outputs, and guidance.

vLLM gives a logits processor the logits alone; this one finds the states they were made of in the
model, which runs in the same process and step.
"""

from __future__ import annotations

import math
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
    read_request,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from otter_cli.serving.vllm.model import StepStates


def guide_row(logits: Tensor, guide: GuideRequest, model: Any, row: int) -> Tensor:
    """`logit + sum of strength * score` over the best candidates, the rest ruled out; [vocab].

    A closed gate leaves the logits as they are.
    """
    if not _gate_is_open(logits, guide):
        return logits
    at = torch.tensor([row], device=logits.device)
    steered = logits.clone()
    for name, strength in guide.strengths:
        steered += strength * model.read_signal(name, model.step, at)[0]
    if not 0 < guide.candidates < len(logits):
        return steered
    best = logits.topk(guide.candidates).indices
    return torch.full_like(logits, -math.inf).scatter(0, best, steered[best])


def _gate_is_open(logits: Tensor, guide: GuideRequest) -> bool:
    if guide.entropy_above is None and guide.top_below is None:
        return True
    probabilities = logits.softmax(-1)
    entropy = float(torch.special.entr(probabilities).sum())
    above, below = guide.entropy_above, guide.top_below
    return (above is None or entropy > above) and (
        below is None or float(probabilities.max()) < below
    )


class OtterProcessor(LogitsProcessor):
    """Does nothing for models that are no grafts, and for requests that ask for nothing."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.vllm_config = vllm_config
        config = vllm_config.model_config.hf_config
        self.grafted = hasattr(config, "otter")
        self.numbers = signal_outputs_of(config) if self.grafted else SignalOutputs(())
        self.rows: dict[int, SignalRequest] = {}
        # Rows that want log-probabilities; true: of the best tokens, not of the chosen one alone.
        self.scored: dict[int, bool] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Runs where clients are answered: what is wrong becomes their error, status 400."""
        arguments = sampling_params.extra_args
        if not any(key.startswith(ARGUMENT_PREFIX) for key in arguments or {}):
            return
        numbers = ANNOUNCED_SIGNALS.get("graft", SignalOutputs(()))
        if numbers is None:
            raise VLLMValidationError(
                "this engine drafts, and vLLM loads no logits processors beside a drafter: there "
                "are neither signals nor guidance; serve the graft without --speculative-config"
            )
        try:
            asked = read_request(arguments, numbers)
            _check_room(len(asked.numbers) if asked else 0, sampling_params)
        except OtterError as error:
            raise VLLMValidationError(f"{error.what}; {error.hint}") from None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._new)
        process_dict_updates(self.scored, batch_update, self._wants_best)
        if batch_update is not None and self.grafted:
            find_model(self.vllm_config).ask(tuple(sorted(self.rows)))

    def _new(self, params: SamplingParams, *_: Any) -> SignalRequest | None:
        return read_request(params.extra_args, self.numbers)

    def _wants_best(self, params: SamplingParams, *_: Any) -> bool | None:
        asked = read_request(params.extra_args, self.numbers)
        if params.logprobs is None or (asked and asked.silent):
            return None
        return params.logprobs != (len(asked.numbers) if asked else 0)

    def apply(self, logits: Tensor) -> Tensor:
        guided = {row: r.guide for row, r in self.rows.items() if r.guide is not None}
        if guided:
            model = find_model(self.vllm_config)
            self._step(logits)
            for row, guide in guided.items():
                logits[row] = guide_row(logits[row], guide, model, row)
        return logits

    @property
    def alone(self) -> bool:
        """Whether no best tokens are asked for beside the numbers of this step."""
        return not any(self.scored.values()) and any(r.numbers for r in self.rows.values())

    def numbers_alone(self, logprobs: Tensor | None, sampled: Tensor) -> LogprobsTensors:
        """What stock gathers, less the best tokens, which nobody asked for; with the numbers.
        `logprobs`: None where nobody asked for any."""
        token, groups = sampled[:, None].long(), self._groups()
        if logprobs is None:
            chosen, ranks = _no_logprobs(len(token), token.device)
        else:
            chosen = logprobs.gather(-1, token)
            mark_unbacked(logprobs, 0)  # as stock does: no compiling anew for another batch
            mark_unbacked(chosen, 0)
            ranks = batched_count_greater_than(logprobs, chosen)
        ((wanted, silent), rows), *others = groups.items()
        if not others and len(rows) == len(token) and silent == (logprobs is None):
            virtual = _virtual_ids(wanted, token.device).expand(len(token), -1)
            ids = torch.cat([token.int(), virtual], -1)
            read = self._read(wanted, self._step(token), slice(None), sampled)
            return LogprobsTensors(ids, torch.cat([chosen, read], -1), ranks)
        room = (0, max(len(wanted) for wanted, _ in groups))
        found = LogprobsTensors(F.pad(token, room).int(), F.pad(chosen, room), ranks)
        return self.add_numbers(found, sampled)

    def add_numbers(self, found: LogprobsTensors, sampled: Tensor) -> LogprobsTensors:
        """Numbers go right behind the sampled token, before the best others, which make room.

        `found`: [rows, 1 + n] ids and log-probabilities. Every row keeps its own n. Of silent rows
        log-probabilities read -inf and the rank 0, whatever the others ask for.
        """
        groups = self._groups()
        if not groups:
            return found
        # Where others name their tokens, rows may be as wide as that asks.
        lacking = 1 + max(len(wanted) for wanted, _ in groups) - found.logprobs.shape[1]
        if lacking > 0:
            wider = [F.pad(part, (0, lacking)) for part in found[:2]]
            found = LogprobsTensors(*wider, found.selected_token_ranks)
        ids, values, ranks = (part.clone() for part in found[:3])
        step = self._step(ids)
        for (wanted, silent), rows in groups.items():
            at, end = torch.tensor(rows, device=ids.device), 1 + len(wanted)
            kept = ids.shape[1] - len(wanted)
            ids[at, end:] = found.logprob_token_ids[at, 1:kept]
            values[at, end:] = found.logprobs[at, 1:kept]
            if silent:
                ids[at, end:], values[at], ranks[at] = ids[at, :1], -torch.inf, 0
            ids[at, 1:end] = _virtual_ids(wanted, ids.device).expand(len(rows), -1)
            values[at, 1:end] = self._read(wanted, step, at, sampled[at])
        return found._replace(logprob_token_ids=ids, logprobs=values, selected_token_ranks=ranks)

    def _groups(self) -> dict[tuple[tuple[int, ...], bool], list[int]]:
        """Rows by their numbers, and whether these are all: a step is short, and every operation
        shows in it."""
        groups: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for row, request in self.rows.items():
            if request.numbers:
                groups.setdefault((request.numbers, request.silent), []).append(row)
        return groups

    def _step(self, rows: Tensor) -> StepStates:
        step: StepStates | None = find_model(self.vllm_config).step
        assert step is not None and len(step.base_state) == len(rows)
        return step

    def _read(
        self, wanted: tuple[int, ...], step: StepStates, rows: Tensor | slice, sampled: Tensor
    ) -> Tensor:
        """The wanted numbers of rows that ask for the same, [rows, numbers]."""
        model, numbers = find_model(self.vllm_config), [self.numbers.all[i] for i in wanted]
        scores = {
            name: self._of_sampled(name, model.read_signal(name, step, rows), sampled)
            for name in dict.fromkeys(number.signal for number in numbers)
        }
        return torch.stack([scores[n.signal][:, n.index] for n in numbers], -1)

    def _of_sampled(self, name: str, scores: Tensor, sampled: Tensor) -> Tensor:
        """[rows, numbers]; of action values, the one of the token that was chosen."""
        if self.numbers.signals[name].kind == "vocabulary":
            return scores.gather(-1, sampled[:, None].long())
        return scores[:, None] if scores.ndim == 1 else scores


@lru_cache(maxsize=64)
def _no_logprobs(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ranks where nobody asked for any, [rows, 1] and [rows]."""
    none = torch.full((rows, 1), -torch.inf, device=device)
    return none, torch.zeros(rows, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def _virtual_ids(wanted: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids under which numbers travel."""
    return torch.tensor(wanted, device=device, dtype=torch.int32) + FIRST_VIRTUAL_ID


def _check_room(wanted: int, sampling_params: SamplingParams) -> None:
    logprobs = sampling_params.logprobs
    if wanted and sampling_params.logprob_token_ids:
        raise OtterError(
            "numbers travel as log-probabilities, in the places of those of logprob_token_ids",
            hint="two requests",
        )
    if wanted and (logprobs is None or logprobs < wanted):
        raise OtterError(
            f"{wanted} numbers travel as log-probabilities, and the request asks for "
            f"{logprobs or 0} of those",
            hint=f"logprobs={wanted} (chat: logprobs=true, top_logprobs={wanted + 1}), or use "
            "otter_cli.serving.vllm.client",
        )
