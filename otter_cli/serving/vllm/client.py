"""For clients of a served graft: the arguments of a request, and the answer's signals by name.

    reader = SignalReader.from_folder("served")
    answer = client.completions.create(model=..., prompt=..., **reader.completion(["reward"]))
    reader.read(answer.choices[0])["reward"]     # one number for each token

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object
from otter_cli.serving.vllm.requests import (
    FIRST_VIRTUAL_ID,
    SignalOutputs,
    parse_insertions,
    sigmoid,
    virtual_id,
)
from otter_cli.signals.config import parse_signal

SignalValues = list[float] | list[list[float]]


class SignalReader:
    """Asks a served graft for signals, and reads them from its answers. It knows the graft's
    signals from the exported folder, or as they were written when grafting."""

    def __init__(self, outputs: SignalOutputs) -> None:
        self.outputs = outputs

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Raises OtterError where `folder` is no export for vLLM."""
        described = read_json_object(Path(folder) / "config.json").get("otter")
        if not isinstance(described, dict):
            raise OtterError(
                f"{folder} is no export for vLLM", hint="otter export OUT DIR --to vllm writes one"
            )
        return cls(SignalOutputs.of_insertions(parse_insertions(described)))

    @classmethod
    def from_signals(cls, *signals: str) -> Self:
        """Without a folder: all signals of the graft, in order, such as `reward`, `classes:a,b`."""
        return cls(SignalOutputs(parse_signal(text) for text in signals))

    def completion(
        self, signals: Iterable[str] = (), *, logprobs: int | None = None, **guidance: Any
    ) -> dict[str, Any]:
        """Keywords for `client.completions.create`. `logprobs`: None for none, 0 for
        log-probabilities of the chosen tokens, n for those of the n best tokens too. Guidance:
        guide, strength, candidates, entropy_above, top_below; and stop_when."""
        count, arguments = self._arguments(signals, logprobs, guidance)
        return {"logprobs": count, "extra_body": _body(arguments)}

    def chat(
        self, signals: Iterable[str] = (), *, logprobs: int | None = None, **guidance: Any
    ) -> dict[str, Any]:
        """Keywords for `client.chat.completions.create`: see `completion`."""
        count, arguments = self._arguments(signals, logprobs, guidance)
        # The chosen token itself is one of the top log-probabilities.
        top = {} if count is None else {"logprobs": True, "top_logprobs": count + 1}
        return {**top, "extra_body": _body(arguments)}

    def sampling(
        self, signals: Iterable[str] = (), *, logprobs: int | None = None, **guidance: Any
    ) -> dict[str, Any]:
        """Keywords for vLLM's SamplingParams, offline: see `completion`."""
        count, arguments = self._arguments(signals, logprobs, guidance)
        return {"logprobs": count, "extra_args": arguments}

    def read(self, choice: Any) -> dict[str, SignalValues]:
        """Signals by name, one entry a token. Class signals are probabilities. `choice`: a choice
        of the server's answer, streamed or whole, or an offline CompletionOutput."""
        rows_by_signal: dict[str, list[dict[int, float]]] = {}
        for token in _virtual_logprobs(choice):
            for place, value in token:
                output = self.outputs.outputs[place]
                rows = rows_by_signal.setdefault(output.signal, [])
                if output.index == 0:
                    rows.append({})
                rows[-1][output.index] = value
        return {name: self._values(name, rows) for name, rows in rows_by_signal.items()}

    def of_text(self, scores: Sequence[float]) -> dict[str, float | list[float]]:
        """Signals by name of a text or of one of its tokens. Class signals are probabilities.
        `scores`: `probs` of an answer of `/classify`, or a row of `data` of `/pooling`."""
        row_by_signal: dict[str, dict[int, float]] = {}
        for output, value in zip(self.outputs.text_outputs, scores, strict=True):
            row_by_signal.setdefault(output.signal, {})[output.index] = value
        return {name: self._values(name, [row])[0] for name, row in row_by_signal.items()}

    def _arguments(
        self, signals: Iterable[str], logprobs: int | None, guidance: dict[str, Any]
    ) -> tuple[int | None, dict[str, Any]]:
        """How many log-probabilities to ask the engine for, and the arguments for the graft."""
        arguments, names = {f"otter_{key}": value for key, value in guidance.items()}, list(signals)
        if not names:
            return logprobs, arguments
        own = {"otter_signals": ",".join(names), "otter_logprobs": logprobs is not None}
        return len(self.outputs.places_of(names)) + (logprobs or 0), {**own, **arguments}

    def _values(self, name: str, rows: list[dict[int, float]]) -> SignalValues:
        if self.outputs.signals[name].kind == "classes":
            return [[sigmoid(row[i]) for i in sorted(row)] for row in rows]
        if all(len(row) == 1 for row in rows):
            return [row[0] for row in rows]
        return [[row[i] for i in sorted(row)] for row in rows]


def _body(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"return_tokens_as_token_ids": True, "vllm_xargs": arguments}


def _virtual_logprobs(choice: Any) -> Iterator[list[tuple[int, float]]]:
    """For each token the (index in SignalOutputs.outputs, value) pairs of its answer, in order."""
    logprobs = choice.logprobs
    if logprobs is None:
        return
    steps: list[list[tuple[int | None, float]]]
    if isinstance(logprobs, list):  # offline: for each token a table by token id
        steps = [[(i, entry.logprob) for i, entry in step.items()] for step in logprobs]
    elif getattr(logprobs, "content", None) is not None:  # chat
        steps = [
            [(virtual_id(top.token), top.logprob) for top in token.top_logprobs]
            for token in logprobs.content
        ]
    else:
        steps = [[(virtual_id(t), p) for t, p in step.items()] for step in logprobs.top_logprobs]
    for step in steps:
        yield sorted(
            (i - FIRST_VIRTUAL_ID, value)
            for i, value in step
            if i is not None and i >= FIRST_VIRTUAL_ID
        )
