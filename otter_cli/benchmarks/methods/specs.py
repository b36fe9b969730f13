"""Methods as users name them: `NAME=KIND:key=value,...` on a command line or in a recipe.

`parse_method` reads the text, `build_methods` turns specs into methods on loaded models. Options
are checked against the signature of the method's function."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError, validate_call

from otter_cli.benchmarks.benchmark import GenerateFunction, Method
from otter_cli.benchmarks.methods.generation import METHODS, MethodContext
from otter_cli.benchmarks.model_pool import ModelPool
from otter_cli.benchmarks.records import STRENGTH_MARK
from otter_cli.core.errors import OtterError, closest
from otter_cli.scorers.load import LoadedGraft

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling


DEFAULT_CANDIDATES = 10
# Of every method: how it draws, where otherwise than the run does.
_SAMPLING: Mapping[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
}


@dataclass(frozen=True)
class MethodSpec:
    """`graft`: what it runs on, a folder or a loaded one, by default the run's own; `signal`: of
    that graft, by default the run's."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    graft: LoadedGraft | Path | None = None
    signal: str | None = None

    def at(self, strength: float) -> "MethodSpec":
        """The same at another strength, under a name of its own."""
        return replace(
            self,
            name=f"{self.name}{STRENGTH_MARK}{strength:g}",
            label=f"{self.label or self.name}, strength {strength:g}",
            options={**self.options, "strength": strength},
        )


def parse_method(text: str) -> list[MethodSpec]:
    """Reads `KIND`, `KIND:key=value,...` and the same after `NAME=`; `strength=1/2/4` is a method
    for each. Raises OtterError."""
    head, _, rest = text.partition(":")
    name, named, kind = head.rpartition("=")
    if kind not in METHODS:
        near = closest(kind, METHODS)
        raise OtterError(
            f"--method {text!r}: there is no method {kind!r}",
            hint=(f"did you mean {near!r}? " if near else "") + f"methods: {', '.join(METHODS)}",
        )
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise OtterError(f"--method {text!r}: {part!r} is no key=value", hint="such as n=8")
        options[key.replace("-", "_")] = value
    graft, signal = options.pop("graft", None), options.pop("signal", None)
    spec = MethodSpec(
        name=name or kind,
        kind=kind,
        options=options,
        label=name if named else None,
        graft=None if graft is None else Path(graft),
        signal=signal,
    )
    strengths = str(options.get("strength", "")).split("/")
    if len(strengths) == 1:
        return [spec]
    return [spec.at(_strength(strength, text)) for strength in strengths]


def parse_methods(texts: Sequence[str] | None) -> list[MethodSpec]:
    return [spec for text in texts or () for spec in parse_method(text)]


def build_methods(
    specs: Sequence[MethodSpec], models: ModelPool, candidates: int = DEFAULT_CANDIDATES
) -> dict[str, Method]:
    """The methods by name. What weighs `candidates` weighs so many, where its own text names no
    other number. Raises OtterError for a name twice, an unknown option, a bad value."""
    built: dict[str, Method] = {}
    for spec in specs:
        if spec.name in built:
            raise OtterError(
                f"two methods are called {spec.name!r}", hint="name one: --method NAME=KIND:..."
            )
        built[spec.name] = _build_method(spec, models, candidates)
    return built


def _build_method(spec: MethodSpec, models: ModelPool, candidates: int) -> Method:
    signal = spec.signal or models.signal
    graft = models.graft if spec.graft is None else models.grafted(spec.graft, signal)
    if spec.signal is not None and spec.graft is None:
        models.require_signal(signal)
    own = {k: v for k, v in spec.options.items() if k not in _SAMPLING}
    if "candidates" in _required_names(METHODS[spec.kind]):
        own.setdefault("candidates", candidates)
    make = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(METHODS[spec.kind])
    try:
        method = make(MethodContext(graft, signal, models), **own)
        drawn = {k: read(spec.options[k]) for k, read in _SAMPLING.items() if k in spec.options}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OtterError(
            f"method {spec.name} ({spec.kind}): {where}: {first['msg'].lower()}",
            hint=f"its options: {', '.join(_option_names(METHODS[spec.kind]))}; "
            "of every method: graft, "
            f"signal, {', '.join(_SAMPLING)}",
        ) from None
    except ValueError as error:
        raise OtterError(f"method {spec.name}: {error}", hint="a number") from error
    label = spec.label or method.label
    record = method.record.model_copy(
        update={"label": label, "steering": {**method.record.steering, **drawn}}
    )
    call = partial(_generate_with_sampling, method.generate, drawn) if drawn else method.generate
    return replace(method, label=label, record=record, generate=call)


def _generate_with_sampling(
    call: GenerateFunction, drawn: Mapping[str, Any], prompts: list[list[int]], sampling: "Sampling"
) -> "list[Generation]":
    return call(prompts, replace(sampling, **drawn))


def _option_names(make: Callable[..., Method]) -> list[str]:
    return [*(make.__kwdefaults__ or {}), *_required_names(make)]


def _required_names(make: Callable[..., Method]) -> list[str]:
    given = ("of", "return", *(make.__kwdefaults__ or {}))
    return [name for name in make.__annotations__ if name not in given]


def _strength(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OtterError(f"--method {whole!r}: {text!r} is no strength", hint="such as 1/2/4")
    return value
