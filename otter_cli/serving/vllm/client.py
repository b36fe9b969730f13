"""For clients of a served graft: the arguments of a request, and the answer's signals by name.

    reader = SignalReader.from_folder("served")
    answer = client.completions.create(model=..., prompt=..., **reader.completion(["reward"]))
    reader.read(answer.choices[0])["reward"]     # one number for each token

Imports neither torch nor vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object
from otter_cli.graft.config import InsertionConfig
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID, SignalOutputs
from otter_cli.signals.config import parse_signal

SignalValues = list[float] | list[list[float]]
_TOKEN_ID_PREFIX = "token_id:"


class SignalReader:
    """Knows a graft's signals: from its exported folder, or as they were written when grafting."""

    def __init__(self, numbers: SignalOutputs) -> None:
        self.numbers = numbers

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Raises OtterError where `folder` is no export for vLLM."""
        described = read_json_object(Path(folder) / "config.json").get("otter")
        if not isinstance(described, dict):
            raise OtterError(
                f"{folder} is no export for vLLM", hint="otter export OUT DIR --to vllm writes one"
            )
        insertions = [InsertionConfig.model_validate(one) for one in described["insertions"]]
        return cls(SignalOutputs(signal for one in insertions for signal in one.signals))

    @classmethod
    def from_signals(cls, *signals: str) -> Self:
        """For a client that has no folder: all signals of the graft, in order, `classes:a,b`."""
        return cls(SignalOutputs(parse_signal(text) for text in signals))

    def completion(
        self, signals: Iterable[str] = (), *, logprobs: int | None = None, **guidance: Any
    ) -> dict[str, Any]:
        """Keywords for `client.completions.create`. `logprobs`: None, or 0 for log-probabilities of
        the chosen tokens, or that many of the best besides. Guidance: guide, strength, candidates,
        entropy_above, top_below."""
        room, arguments = self._ask(signals, logprobs, guidance)
        return {"logprobs": room, "extra_body": _body(arguments)}

    def chat(
        self, signals: Iterable[str] = (), *, logprobs: int | None = None, **guidance: Any
    ) -> dict[str, Any]:
        """Keywords for `client.chat.completions.create`: see `completion`."""
        room, arguments = self._ask(signals, logprobs, guidance)
        # The chosen token itself takes one of the places.
        places = {} if room is None else {"logprobs": True, "top_logprobs": room + 1}
        return {**places, "extra_body": _body(arguments)}

    def sampling(
        self, signals: Iterable[str] = (), *, logprobs: int | None = None, **guidance: Any
    ) -> dict[str, Any]:
        """Keywords for vLLM's SamplingParams, offline: see `completion`."""
        room, arguments = self._ask(signals, logprobs, guidance)
        return {"logprobs": room, "extra_args": arguments}

    def read(self, choice: Any) -> dict[str, SignalValues]:
        """Signals by name, one entry a token: of a choice of the server's answer, streamed or
        whole, or of an offline CompletionOutput. Class signals are probabilities."""
        found: dict[str, list[dict[int, float]]] = {}
        for token in _tokens(choice):
            for place, value in token:
                number = self.numbers.all[place]
                rows = found.setdefault(number.signal, [])
                if number.index == 0:
                    rows.append({})
                rows[-1][number.index] = value
        return {name: self._scores(name, rows) for name, rows in found.items()}

    def of_text(self, scores: Sequence[float]) -> dict[str, float | list[float]]:
        """Signals by name of a text or one of its tokens: `probs` of an answer of `/classify`, a
        row of `data` of `/pooling`. Class signals are probabilities."""
        found: dict[str, dict[int, float]] = {}
        for number, value in zip(self.numbers.of_texts, scores, strict=True):
            found.setdefault(number.signal, {})[number.index] = value
        return {name: self._scores(name, [row])[0] for name, row in found.items()}

    def _ask(
        self, signals: Iterable[str], logprobs: int | None, guidance: dict[str, Any]
    ) -> tuple[int | None, dict[str, Any]]:
        """How many log-probabilities to ask the engine for, and what to ask the graft."""
        arguments, names = {f"otter_{key}": value for key, value in guidance.items()}, list(signals)
        if not names:
            return logprobs, arguments
        asked = {"otter_signals": ",".join(names), "otter_logprobs": logprobs is not None}
        return len(self.numbers.of(names)) + (logprobs or 0), {**asked, **arguments}

    def _scores(self, name: str, rows: list[dict[int, float]]) -> SignalValues:
        if self.numbers.signals[name].kind == "classes":
            return [[_sigmoid(row[i]) for i in sorted(row)] for row in rows]
        if all(len(row) == 1 for row in rows):
            return [row[0] for row in rows]
        return [[row[i] for i in sorted(row)] for row in rows]


def _body(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"return_tokens_as_token_ids": True, "vllm_xargs": arguments}


def _tokens(choice: Any) -> Iterator[list[tuple[int, float]]]:
    """For each token the (place in Numbers.all, value) pairs of its answer, in order."""
    found = choice.logprobs
    if found is None:
        return
    if isinstance(found, list):  # offline: a table from token id for each token
        steps = [[(i, one.logprob) for i, one in step.items()] for step in found]
    elif getattr(found, "content", None) is not None:  # chat
        steps = [
            [(_token_id(top.token), top.logprob) for top in token.top_logprobs]
            for token in found.content
        ]
    else:
        steps = [[(_token_id(t), p) for t, p in step.items()] for step in found.top_logprobs]
    for step in steps:
        yield sorted((i - FIRST_VIRTUAL_ID, value) for i, value in step if i >= FIRST_VIRTUAL_ID)


def _token_id(token: str) -> int:
    return int(token.removeprefix(_TOKEN_ID_PREFIX)) if token.startswith(_TOKEN_ID_PREFIX) else -1


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
