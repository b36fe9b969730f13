"""Methods as users name them: `NAME=KIND:key=value,...` on a command line or in a recipe.

`parse_method` reads the text. `build_methods` turns specs into methods on loaded models, and checks
their options against the signature of the method's function."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError, validate_call

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.methods.generation import METHODS, MethodContext
from otter_cli.benchmarks.model_pool import ModelPool
from otter_cli.benchmarks.records import STRENGTH_MARK
from otter_cli.core.errors import OtterError, did_you_mean
from otter_cli.scorers.load import LoadedGraft

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling


DEFAULT_CANDIDATES = 10
# Options of every method: its own sampling, in place of the run's.
_SAMPLING: Mapping[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
}


@dataclass(frozen=True)
class MethodSpec:
    """A method before its models are loaded. `graft`: what it runs on, a folder or a loaded graft,
    by default the run's. `signal`: a signal of that graft, by default the run's."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    graft: LoadedGraft | Path | None = None
    signal: str | None = None

    def at(self, strength: float) -> "MethodSpec":
        """The same method at another strength, under its own name."""
        return replace(
            self,
            name=f"{self.name}{STRENGTH_MARK}{strength:g}",
            label=f"{self.label or self.name}, strength {strength:g}",
            options={**self.options, "strength": strength},
        )


def parse_method(text: str) -> list[MethodSpec]:
    """Reads `KIND`, `KIND:key=value,...` and the same after `NAME=`. `strength=1/2/4` gives a
    method for each strength. Raises OtterError."""
    head, _, rest = text.partition(":")
    name, named, kind = head.rpartition("=")
    if kind not in METHODS:
        raise OtterError(
            f"--method {text!r}: there is no method {kind!r}",
            hint=did_you_mean(kind, METHODS) + f"methods: {', '.join(METHODS)}",
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


def _strength(text: str, method: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OtterError(f"--method {method!r}: {text!r} is no strength", hint="such as 1/2/4")
    return value


def parse_methods(texts: Sequence[str]) -> list[MethodSpec]:
    return [spec for text in texts for spec in parse_method(text)]


def build_methods(
    specs: Sequence[MethodSpec], models: ModelPool, candidates: int = DEFAULT_CANDIDATES
) -> dict[str, Method]:
    """The methods by name. `candidates`: for methods whose own options give no number. Raises
    OtterError for a name that is used twice, an unknown option and a bad value."""
    methods: dict[str, Method] = {}
    for spec in specs:
        if spec.name in methods:
            raise OtterError(
                f"two methods are called {spec.name!r}", hint="name one: --method NAME=KIND:..."
            )
        methods[spec.name] = _build_method(spec, models, candidates)
    return methods


def _build_method(spec: MethodSpec, models: ModelPool, candidates: int) -> Method:
    signal = spec.signal or models.signal
    graft = models.graft if spec.graft is None else models.grafted(spec.graft, signal)
    if spec.signal is not None and spec.graft is None:
        models.require_signal(signal)
    function = METHODS[spec.kind]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    options = {k: v for k, v in spec.options.items() if k not in _SAMPLING}
    if defaults.get("candidates") is inspect.Parameter.empty:
        options.setdefault("candidates", candidates)
    make = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    try:
        method = make(MethodContext(graft, signal, models), **options)
        sampling = {k: read(spec.options[k]) for k, read in _SAMPLING.items() if k in spec.options}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OtterError(
            f"method {spec.name} ({spec.kind}): {where}: {first['msg'].lower()}",
            hint=f"its options: {', '.join(defaults)}; of every method: graft, signal, "
            f"{', '.join(_SAMPLING)}",
        ) from None
    except ValueError as error:
        raise OtterError(f"method {spec.name}: {error}", hint="a number") from error
    label = spec.label or method.record.label
    steering = {**method.record.steering, **sampling}
    record = method.record.model_copy(update={"label": label, "steering": steering})

    def generate(prompts: list[list[int]], shared: "Sampling") -> "list[Generation]":
        return method.generate(prompts, replace(shared, **sampling))

    return replace(method, record=record, generate=generate)
