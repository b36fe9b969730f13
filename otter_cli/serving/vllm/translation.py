"""From the fields of `serving/signal_schema.py` to what vLLM understands: a request's body.

Signals travel through vLLM as log-probabilities (`requests.py`). The body asks for as many more of
those as the signals need, and for token ids, from which the text's last value is read. `AnswerPlan`
says how the answer is turned back (`answers.py`). This module imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.serving.signal_schema import RequestExtension, RequestRefused, split_body
from otter_cli.serving.vllm.requests import (
    ARGUMENT_PREFIX,
    SignalOutputs,
    StopBound,
    read_request,
)

# Fields of vLLM that leave no place for signals, or that hide tokens, with a reason.
_CONFLICTS = {
    "echo": "the answer would begin with the prompt's tokens, which have no signals",
    "use_beam_search": "beams are compared by log-probabilities, in whose place signals travel",
    "logprob_token_ids": "signals travel in the places of those log-probabilities",
}
_STOP_CONFLICTS = {
    "ignore_eos": "the engine ends an answer by its end token",
    "include_stop_str_in_output": "the end token that ends the answer would be part of the text",
}


@dataclass(frozen=True)
class AnswerPlan:
    """How an answer is turned back. `signals`: the names to return; `travelling`: these and the
    signals of `stops`. `outputs`: how many numbers travel beside each token. `logprobs`: how many
    of the best tokens the client itself wants; None for no log-probabilities. `token_ids`: whether
    it wants token ids. `choices`: how many answers each prompt gets."""

    signals: tuple[str, ...]
    travelling: tuple[str, ...]
    stops: tuple[StopBound, ...]
    outputs: int
    logprobs: int | None
    token_ids: bool
    choices: int
    cache_salt: str | None


def translate(
    body: Mapping[str, Any], outputs: SignalOutputs, *, chat: bool
) -> tuple[dict[str, Any], AnswerPlan | None]:
    """The body for vLLM, and the plan for its answer; None where the answer stays as it is. Raises
    RequestRefused."""
    extension, rest = split_body(body)
    extension.check(outputs.signals)
    if extension.empty:
        return rest, None
    logprobs = _wanted_logprobs(rest, chat)
    arguments = {**_arguments(extension), "otter_logprobs": logprobs is not None}
    try:
        request = read_request(arguments, outputs)
    except OtterError as error:
        raise RequestRefused(error.what, hint=error.hint) from error
    rest["vllm_xargs"] = {**_clients_arguments(rest), **arguments}
    if request is None or not request.outputs:
        return rest, None
    _refuse_conflicts(rest, _CONFLICTS, "signals")
    if request.stops:
        _refuse_conflicts(rest, _STOP_CONFLICTS, "stop_when")
    plan = AnswerPlan(
        signals=extension.signals,
        travelling=tuple(arguments["otter_signals"]),
        stops=request.stops,
        outputs=len(request.outputs),
        logprobs=logprobs,
        token_ids=bool(rest.get("return_token_ids")),
        choices=_count(rest, "n") or 1,
        cache_salt=rest.get("cache_salt"),
    )
    return {**rest, **_logprobs_fields(plan, chat), "return_token_ids": True}, plan


def _arguments(extension: RequestExtension) -> dict[str, Any]:
    """The fields as `vllm_xargs`, which take texts, numbers and lists of them."""
    bounds = extension.bounds
    names = dict.fromkeys([*extension.signals, *(bound.signal for bound in bounds)])
    arguments: dict[str, Any] = {"otter_signals": list(names)} if names else {}
    if bounds:
        arguments["otter_stop_when"] = [str(bound) for bound in bounds]
    guides = {name: strength for name, strength in extension.guide.items() if strength}
    if guides:
        arguments["otter_guide"] = list(guides)
        arguments["otter_strength"] = list(guides.values())
        arguments["otter_candidates"] = extension.guide_candidates
    return arguments


def _clients_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The client's own `vllm_xargs`, which may not be ours."""
    own = body.get("vllm_xargs") or {}
    if not isinstance(own, dict):
        raise RequestRefused("vllm_xargs is no object", param="vllm_xargs")
    if double := sorted(key for key in own if key.startswith(ARGUMENT_PREFIX)):
        raise RequestRefused(
            f"vllm_xargs has {', '.join(double)} beside the fields for signals",
            hint="give signals, guide and stop_when, or vllm_xargs alone",
            param="vllm_xargs",
        )
    return own


def _refuse_conflicts(body: Mapping[str, Any], reasons: Mapping[str, str], field: str) -> None:
    for name, reason in reasons.items():
        if body.get(name):
            raise RequestRefused(f"{name} and {field} do not go together: {reason}", param=name)
    if body.get("include_reasoning") is False:
        raise RequestRefused(
            "include_reasoning: without it vLLM hides the tokens, and with them their signals",
            param="include_reasoning",
        )


def _wanted_logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _count(body, "logprobs")
    return (_count(body, "top_logprobs") or 0) if body.get("logprobs") else None


def _logprobs_fields(plan: AnswerPlan, chat: bool) -> dict[str, Any]:
    count = plan.outputs + (plan.logprobs or 0)
    if not chat:
        return {"logprobs": count}
    # The chosen token itself is one of the top log-probabilities of a chat.
    return {"logprobs": True, "top_logprobs": count if plan.logprobs else count + 1}


def _count(body: Mapping[str, Any], field: str) -> int | None:
    """A whole number of at least 0. vLLM takes some as texts too."""
    value = body.get(field)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise RequestRefused(
            f"{field} is {value!r}", hint="beside signals, a whole number", param=field
        )
    return number
