"""What is asked of a verification, what it costs, and what fits its time. No torch.

VerificationRequest says what to verify. Cost counts forwards and tokens, which are equal on every
machine. Agenda is the list of work; of it, `fit_budget` picks the most valuable part, and
TimeBudget says when to stop. What was done goes into the proof as a WorkSelection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import Advance, progress
from otter_cli.verification.grid import GENERATES, Case, Grid

if TYPE_CHECKING:
    from torch import nn


_CALL_TOKENS = (
    32  # tokens that a call costs: 36 ms beside 1.1 ms a token, 135 M parameters in bfloat16
)
_TRACED_CALL_TOKENS = 320  # the same where every operation is looked at
_ROWS = {"beam": 3}


@dataclass
class Cost:
    """`longest`: tokens of the longest window that the grid has, the unit of `multiple`."""

    longest: int = 0
    forwards: int = 0
    tokens: int = 0
    # Tokens by level.
    levels: dict[str, int] = field(default_factory=dict)

    @property
    def multiple(self) -> float:
        """All tokens that were fed, in forwards of the longest window."""
        return self.tokens / max(self.longest, 1)

    @contextmanager
    def counting(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, every call of one of `models` is counted, whoever makes it."""
        distinct = {id(model): model for model in models}
        with ExitStack() as stack:
            for model in distinct.values():
                handle = model.register_forward_pre_hook(
                    self._count, prepend=True, with_kwargs=True
                )
                stack.callback(handle.remove)
            yield

    @contextmanager
    def of(self, level: str) -> Iterator[None]:
        before = self.tokens
        try:
            yield
        finally:
            self.levels[level] = self.levels.get(level, 0) + self.tokens - before

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", inputs[0] if inputs else None)
        self.forwards += 1
        self.tokens += 0 if ids is None else ids.numel()

    def record(self) -> dict[str, Any]:
        return {**vars(self), "multiple": round(self.multiple, 3)}


def estimated_tokens(case: Case) -> int:
    """An estimate of one run of the case, in tokens."""
    tokens, calls = _case_size(case)
    return tokens + _CALL_TOKENS * calls


def estimated_trace_tokens(case: Case) -> int:
    """Of its trace: the base and the other model, operation by operation."""
    tokens, calls = _case_size(case)
    return 2 * (tokens + _TRACED_CALL_TOKENS * calls)


def _case_size(case: Case) -> tuple[int, int]:
    """Tokens that are fed, and calls. `generate` never feeds the last token."""
    calls = 1 + case.steps
    if case.path in GENERATES:
        calls = max(case.steps, 1)
    elif case.path == "chunked":
        calls = -(-case.length // max(case.chunk, 1))
    rows = case.batch * _ROWS.get(case.path, 1)
    steps = 0 if case.path == "chunked" else calls - 1
    return rows * (case.length + steps), calls


INTERRUPTED = "interrupted"
BUDGET_SPENT = "the budget is spent"
_FIRST_LINE = 2.0  # seconds: the first estimate of the time that is left


class TimeBudget:
    """`stopped` is why the run ends early, empty while it goes on. Levels look between two runs."""

    def __init__(
        self,
        interrupted: Callable[[], bool] = lambda: False,
        budget: float = 0.0,
        started: float | None = None,
    ) -> None:
        self._interrupted = interrupted
        begun = monotonic() if started is None else started
        self._end = begun + budget if budget else None
        self._advance: Advance = lambda count: None
        self._why = ""

    @property
    def left(self) -> float:
        """Seconds until the budget is spent; infinite without one."""
        return float("inf") if self._end is None else max(self._end - monotonic(), 0.0)

    @property
    def stopped(self) -> str:
        if not self._why and self._interrupted():
            self._why = INTERRUPTED
        if not self._why and not self.left:
            self._why = BUDGET_SPENT
        return self._why

    @contextmanager
    def showing(self, total: int) -> Iterator[None]:
        """Progress over so much work, for a person."""
        with progress(total, "verifying", first=_FIRST_LINE) as self._advance:
            yield

    def done(self, work: int) -> None:
        self._advance(work)


_TELLING_LENGTH = 33  # tokens of the most telling prompt: no kernel blocks by them, and it is short


@dataclass(frozen=True)
class WorkSelection:
    """Work by name: cases to compare, cases to poison, paths to trace; whether each tensor is
    poisoned in turn, and locality checked."""

    cases: tuple[str, ...]
    traces: tuple[str, ...]
    poisoned: tuple[str, ...]
    each: bool = True
    locality: bool = True


@dataclass(frozen=True)
class Agenda:
    """The work itself, in the order of the grid."""

    cases: tuple[Case, ...]
    traces: tuple[Case, ...]
    # Names of cases whose poisoned runs are wanted; None: all.
    poisoned: frozenset[str] | None = None
    each: bool = True
    locality: bool = True

    def only(self, chosen: WorkSelection) -> Agenda:
        """What a proof says was done, of what the grid has. A proof cannot add to the grid."""
        cases, traces = set(chosen.cases), set(chosen.traces)
        return Agenda(
            tuple(case for case in self.cases if case_name(case) in cases),
            tuple(case for case in self.traces if case_name(case) in traces),
            frozenset(chosen.poisoned),
            chosen.each,
            chosen.locality,
        )

    def poisons(self, case: Case) -> bool:
        return self.poisoned is None or case_name(case) in self.poisoned

    def of(self, device: str, dtype: str) -> Agenda:
        """The part that one loaded pair serves."""

        def here(cases: tuple[Case, ...]) -> tuple[Case, ...]:
            return tuple(case for case in cases if (case.device, case.dtype) == (device, dtype))

        return Agenda(here(self.cases), here(self.traces), self.poisoned, self.each, self.locality)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(device, dtype) of every pair to load."""
        return list(dict.fromkeys((case.device, case.dtype) for case in self.cases))


def case_name(case: Case) -> str:
    return f"{case}, seed {case.seed}"


def fit_budget(
    agenda: Agenda, seconds: float, rate: float, load: float, departures: Callable[[Case], int]
) -> Agenda:
    """The most valuable part of the agenda that fits: `rate` seconds for each token of estimated
    work, `load` for each further pair. Work that is too long is passed over for shorter work. The
    first trace and the first case are always in."""
    chosen: set[tuple[str, Case]] = set()
    loaded = {(agenda.cases[0].device, agenda.cases[0].dtype)} if agenda.cases else set()
    for level, case in by_priority(agenda, departures):
        group = case.device, case.dtype
        price = rate * _priced_tokens(level, case) + (0.0 if group in loaded else load)
        first = not any(level == other for other, _ in chosen)
        if price <= seconds or (first and group in loaded):
            chosen.add((level, case))
            loaded.add(group)
            seconds -= price
    return Agenda(
        tuple(case for case in agenda.cases if ("case", case) in chosen),
        tuple(case for case in agenda.traces if ("trace", case) in chosen),
        agenda.poisoned,
        # Each takes about as long as a few traces.
        agenda.each and seconds > 0,
        agenda.locality and seconds > 0,
    )


def by_priority(agenda: Agenda, departures: Callable[[Case], int]) -> Iterator[tuple[str, Case]]:
    """The work in order of value: first what differs most from all before it. A trace of the main
    setting holds for every value, so it leads; then one case of every kind, main setting first;
    then the other traces; then second cases of a kind."""
    ranked: list[tuple[tuple[float, ...], int, str, Case]] = []
    seen: Counter[tuple[Any, ...]] = Counter()
    for place, case in enumerate(agenda.traces):
        turn = seen["trace", case.setting]
        seen["trace", case.setting] += 1
        away = departures(case)
        ranked.append(((float(min(turn, 1) + away), 0.0), place, "trace", case))
    # Of one kind, the case nearest to the most telling length.
    telling = sorted(agenda.cases, key=lambda case: abs(math.log2(case.length / _TELLING_LENGTH)))
    for case in telling:
        turn = seen["case", case.setting, case.kind]
        seen["case", case.setting, case.kind] += 1
        rank = float(turn + departures(case)), float(estimated_tokens(case))
        ranked.append((rank, agenda.cases.index(case), "case", case))
    for _, _, level, case in sorted(ranked, key=lambda entry: (entry[0], entry[2], entry[1])):
        yield level, case


def _priced_tokens(level: str, case: Case) -> int:
    # A case: the base, the other model, and two runs with poison.
    return estimated_trace_tokens(case) if level == "trace" else 4 * estimated_tokens(case)


@dataclass(frozen=True)
class VerificationRequest:
    """`base` None: the one inside the graft. `static_only`: no model is run. `independent`: the
    base is loaded a second time even where its files are the graft's. `trust`: modelling code
    that a folder brings along is run. `budget`: seconds after which no further run begins; 0: no
    limit. `only`: what an earlier verification did, to be done again."""

    folder: Path
    base: Path | None = None
    grid: Grid = field(default_factory=Grid)
    static_only: bool = False
    independent: bool = False
    trust: bool = False
    budget: float = 0.0
    only: WorkSelection | None = None

    @property
    def against(self) -> Path:
        return self.base or self.folder

    def record(self) -> dict[str, Any]:
        base = None if self.base is None else str(self.base)
        return {**asdict(self), "folder": str(self.folder), "base": base}
