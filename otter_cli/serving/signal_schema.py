"""The signals of a graft in OpenAI's schema: what a request may add, and what an answer returns.

Every way to serve a graft uses this module, so that a client needs one parser. A request takes
three more fields, which the official `openai` client sends by `extra_body`:

    client.chat.completions.create(model=..., messages=..., extra_body={
        "signals": ["toxicity"],               # values to return, one for each generated token
        "guide": {"reward": 2.0},              # logit + strength * score
        "stop_when": "toxicity>0.9",           # ends the answer at the first token where it holds
    })

Each choice of the answer then carries `signals` beside `message` (in a stream: beside `delta`, for
the tokens of that chunk):

    {"toxicity": {"tokens": [0.01, 0.02, 0.93], "last": 0.93}}

`docs/signals.schema.json` is the JSON schema that `schema_document` writes.

For the author of another engine: `split_body` takes the fields out of a decoded JSON body, and the
rest is a request that stock software understands. `RequestExtension.check` refuses names that the
graft lacks. `RequestExtension.bounds` are the parsed comparisons. `signal_series` makes the entry
of one signal, `choice_fields` all that is added to a choice. `error_body` is the body of every
refusal. This module imports neither torch nor an engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from otter_cli.core.atomic import write_text
from otter_cli.core.errors import OtterError, label_index
from otter_cli.core.strict_config import StrictConfig
from otter_cli.signals.comparisons import Comparison, parse_comparison, split_label
from otter_cli.signals.config import SignalConfig, unknown_signal

# Counts up when a client that follows the older document would misread an answer.
SCHEMA_VERSION = 1
# Chosen for `stop_when`: "stop" would say that the model ended its answer by itself.
STOP_WHEN_FINISH = "content_filter"

Value = float | None
TokenValue = Value | list[Value]


def _as_names(value: Any) -> Any:
    """A text is a list of one, and null is an empty list. Repeated names count once."""
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else value


_NAMES_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Names = Annotated[tuple[str, ...], BeforeValidator(_as_names), WithJsonSchema(_NAMES_SCHEMA)]


class RequestRefused(OtterError):
    """A request that is answered with an error `status`. `param` is the field that is wrong."""

    def __init__(self, what: str, *, hint: str = "", param: str | None = None, status: int = 400):
        super().__init__(what, hint=hint)
        self.param, self.status = param, status


class RequestExtension(StrictConfig):
    """The fields that a request may have beside OpenAI's own."""

    signals: Names = Field(
        default=(),
        description="A name or a list of names: the signals to return beside each generated token.",
        examples=[["toxicity", "reward"]],
    )
    guide: dict[str, float] = Field(
        default={},
        description="Strength by signal. The score of each candidate token, times the strength, is "
        "added to its logit. A negative strength steers away from high scores; 0 is plain "
        "decoding. SIGNAL/LABEL names one label of a signal with several.",
        examples=[{"reward": 2.0}, {"toxicity/insult": -5.0}],
    )
    guide_candidates: int = Field(
        default=10,
        ge=0,
        description="How many of the best tokens by logit are scored at each step; 0 is the whole "
        "vocabulary, which only signals that score next tokens allow.",
    )
    stop_when: Names = Field(
        default=(),
        description="A bound or a list of bounds, such as toxicity>0.9, reward<=-1 or "
        "toxicity.insult>0.5. The answer ends at the first token where one of them holds. That "
        f"token is the last of the answer, whose finish_reason is {STOP_WHEN_FINISH}.",
        examples=["toxicity>0.9"],
    )

    @field_validator("guide", mode="before")
    @classmethod
    def _labels_by_slash(cls, value: Any) -> Any:
        """null is no guide. `tone.rude`, the form of `stop_when`, becomes `tone/rude`."""
        if isinstance(value, dict):
            return {str(name).replace(".", "/", 1): weight for name, weight in value.items()}
        return {} if value is None else value

    @property
    def bounds(self) -> list[Comparison]:
        """The parsed comparisons of `stop_when`. Raises OtterError."""
        try:
            return [parse_comparison(text) for text in self.stop_when]
        except OtterError as error:
            raise RequestRefused(error.what, hint=error.hint, param="stop_when") from error

    @property
    def empty(self) -> bool:
        """Whether the request asks for plain decoding alone. A guide of strength 0 is plain."""
        return not (self.signals or self.stop_when or any(self.guide.values()))

    def check(self, known: Mapping[str, SignalConfig]) -> None:
        """Raises RequestRefused for a name or label that is not among the signals `known`, and for
        a signal of a kind that does not fit."""
        for name in self.signals:
            _check_name(name, known, "signals")
        for name in self.guide:
            signal, label = split_label(name)
            _check_label(label, _check_name(signal, known, "guide"), "guide")
        for bound in self.bounds:
            config = _check_name(bound.signal, known, "stop_when")
            if config.kind == "vocabulary":
                raise RequestRefused(
                    f"stop_when: signal {bound.signal!r} scores tokens that could come, not the "
                    "text so far",
                    hint="give a signal that scores text",
                    param="stop_when",
                )
            _check_label(bound.label, config, "stop_when")


def _check_name(name: str, known: Mapping[str, SignalConfig], param: str) -> SignalConfig:
    # Signals of future tokens predict; they score nothing.
    scoring = {key: config for key, config in known.items() if config.kind != "future"}
    if name not in scoring:
        error = unknown_signal(name, scoring)
        raise RequestRefused(f"{param}: {error.what}", hint=error.hint, param=param)
    return scoring[name]


def _check_label(label: str | None, config: SignalConfig, param: str) -> None:
    try:
        label_index(label, config.labels, f"signal {config.name!r}")
    except OtterError as error:
        raise RequestRefused(f"{param}: {error.what}", hint=error.hint, param=param) from error


class SignalSeries(BaseModel):
    """One signal of one choice.

    A value is a number, or a list of numbers for a signal with several labels. null stands for a
    value that is NaN or infinite. Class signals are probabilities.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: list[TokenValue] = Field(
        description="One value for each generated token, in order, the end token included: as many "
        "as the choice has tokens. In a stream: one for each token of the chunk. The value at a "
        "token is that of the text up to it, prompt included; of a signal that scores next tokens "
        "it is the score of that token."
    )
    last: TokenValue = Field(
        description="The last entry of tokens: the value of the whole text. null without tokens."
    )
    labels: list[str] | None = Field(
        default=None, description="What the numbers of a list are, for a signal with several."
    )


class ChoiceExtension(BaseModel):
    """The fields that a choice has beside OpenAI's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signals: dict[str, SignalSeries] | None = Field(
        default=None, description="By name, the signals that the request named; absent without any."
    )
    stop_reason: str | None = Field(
        default=None,
        description="The bound of stop_when, or the stop string, that ended the answer.",
    )


class SignalDescription(BaseModel):
    """A signal that the served graft has: an entry of `signals` of a model in /v1/models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str = Field(description="value, classes (probabilities) or vocabulary (of next tokens)")
    labels: list[str] = []

    @classmethod
    def of(cls, config: SignalConfig) -> SignalDescription:
        return cls(name=config.name, kind=config.kind, labels=list(config.labels))


def split_body(body: Mapping[str, Any]) -> tuple[RequestExtension, dict[str, Any]]:
    """The extension in a request's decoded JSON body, and the body without it. Raises
    RequestRefused."""
    own = {key: body[key] for key in RequestExtension.model_fields if key in body}
    rest = {key: value for key, value in body.items() if key not in own}
    try:
        extension = RequestExtension.model_validate(own)
    except ValidationError as error:
        raise refused_by(error.errors()[0]) from error
    _ = extension.bounds
    return extension, rest


def refused_by(error: Mapping[str, Any]) -> RequestRefused:
    """The refusal for an entry of pydantic's `ValidationError.errors()`."""
    place = ".".join(map(str, error["loc"]))
    what = str(error["msg"]).removeprefix("Value error, ")
    context = error.get("ctx", {})
    hint = context.get("hint", "")
    # An unknown key has no place of its own.
    param = str(error["loc"][0]) if error["loc"] else context.get("key", "").strip("'\"") or None
    return RequestRefused(f"{place}: {what}" if place else what, hint=hint, param=param)


def signal_series(values: Sequence[Any], labels: Sequence[str] = ()) -> dict[str, Any]:
    """The entry of one signal: `values` by token, each a number or a list of numbers."""
    tokens = [_finite(value) for value in values]
    series: dict[str, Any] = {"tokens": tokens, "last": tokens[-1] if tokens else None}
    return {**series, "labels": list(labels)} if len(labels) > 1 else series


def choice_fields(
    values: Mapping[str, Sequence[Any]],
    known: Mapping[str, SignalConfig],
    stop_reason: str | None = None,
) -> dict[str, Any]:
    """What is added to a choice: the signals by name with their `values` by token, and why the
    answer was stopped. A request that names no signal gets no field of ours."""
    signals = {name: signal_series(each, known[name].labels) for name, each in values.items()}
    added: dict[str, Any] = {"signals": signals} if signals else {}
    return added if stop_reason is None else {**added, "stop_reason": stop_reason}


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return float(value) if value is not None and math.isfinite(value) else None


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None
) -> dict[str, Any]:
    """The JSON body of an error, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def refusal_body(error: OtterError, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The body for a request that was refused or failed: what is wrong, and what to do."""
    message = f"{error.what}; {error.hint}" if error.hint else error.what
    return error_body(message, kind=kind, param=getattr(error, "param", None))


def describe_signals(known: Iterable[SignalConfig]) -> dict[str, Any]:
    """What an entry of /v1/models says about the graft's signals."""
    scoring = [SignalDescription.of(config) for config in known if config.kind != "future"]
    return {
        "signals_schema": SCHEMA_VERSION,
        "signals": [description.model_dump() for description in scoring],
    }


def schema_document() -> dict[str, Any]:
    """The JSON schema: `$defs` has RequestExtension, ChoiceExtension and SignalDescription."""
    from pydantic.json_schema import models_json_schema

    _, defined = models_json_schema(
        [
            (RequestExtension, "validation"),
            (ChoiceExtension, "serialization"),
            (SignalDescription, "serialization"),
        ],
        ref_template="#/$defs/{model}",
    )
    for name in ("RequestExtension", "ChoiceExtension"):
        del defined["$defs"][name]["additionalProperties"]  # OpenAI's own fields
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Signals of a graft in OpenAI's schema",
        "description": "RequestExtension: fields of a request. ChoiceExtension: fields of each "
        "choice of an answer, or of a chunk of it. SignalDescription: an entry of signals in "
        "/v1/models. OpenAI's own fields stand beside them.",
        "version": SCHEMA_VERSION,
        "$defs": defined["$defs"],
    }


def write_schema(path: Path) -> None:
    """Writes the JSON schema to a file."""
    write_text(path, json.dumps(schema_document(), indent=2) + "\n")
