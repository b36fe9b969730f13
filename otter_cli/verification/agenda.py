"""The work of a verification: what is asked for, what it costs, and what fits a time budget. No
torch.

VerificationRequest says what to verify. Agenda is the list of work that follows from it, of which
`fit_budget` picks the most valuable part, and TimeBudget says when to stop. Cost counts forwards
and tokens, which are equal on every machine. A proof records what was done as a WorkSelection.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import Advance, progress
from otter_cli.verification.grid import GENERATES, Case, Grid

if TYPE_CHECKING:
    from torch import nn

# A call costs as much as this many tokens: 36 ms beside 1.1 ms a token, for 135 M parameters in
# bfloat16.
_CALL_TOKENS = 32
_TRACED_CALL_TOKENS = 320
_BEAMS = 3

INTERRUPTED = "interrupted"
BUDGET_SPENT = "the budget is spent"
_FIRST_LINE = 2.0  # seconds until the first estimate of the time that is left

# The prompt length that finds most faults for its cost: short, and no multiple of a kernel's block.
_BEST_LENGTH = 33


@dataclass(frozen=True)
class WorkSelection:
    """Work by name: cases to compare, paths to trace, cases to poison. `each`: every inserted
    tensor is poisoned in turn. `locality`: it is checked."""

    cases: tuple[str, ...]
    traces: tuple[str, ...]
    poisoned: tuple[str, ...]
    each: bool = True
    locality: bool = True


@dataclass(frozen=True)
class VerificationRequest:
    """What to verify, and how.

    `base` None: the base inside the graft. `static_only`: no model is run. `independent`: the base
    is loaded a second time even where its files are the graft's. `trust`: modelling code in the
    folder is run. `budget`: seconds after which no further run begins, 0 for no limit. `only`: the
    work of an earlier verification, to be done again.
    """

    folder: Path
    base: Path | None = None
    grid: Grid = field(default_factory=Grid)
    static_only: bool = False
    independent: bool = False
    trust: bool = False
    budget: float = 0.0
    only: WorkSelection | None = None

    @property
    def base_folder(self) -> Path:
        return self.base or self.folder

    def record(self) -> dict[str, Any]:
        base = None if self.base is None else str(self.base)
        return {**asdict(self), "folder": str(self.folder), "base": base}


@dataclass(frozen=True)
class Agenda:
    """The cases to compare and the paths to trace, in the order of the grid."""

    cases: tuple[Case, ...]
    traces: tuple[Case, ...]
    # Names of the cases to poison. None: all of them.
    poisoned: frozenset[str] | None = None
    poison_each: bool = True
    locality: bool = True

    def only(self, selection: WorkSelection) -> Agenda:
        """The part of this agenda that a proof names. A proof cannot add work to the grid."""
        cases, traces = set(selection.cases), set(selection.traces)
        return Agenda(
            tuple(case for case in self.cases if case_name(case) in cases),
            tuple(case for case in self.traces if case_name(case) in traces),
            frozenset(selection.poisoned),
            selection.each,
            selection.locality,
        )

    def poisons(self, case: Case) -> bool:
        return self.poisoned is None or case_name(case) in self.poisoned

    def for_pair(self, device: str, dtype: str) -> Agenda:
        """The part that one loaded pair of models serves."""

        def served(cases: tuple[Case, ...]) -> tuple[Case, ...]:
            return tuple(case for case in cases if (case.device, case.dtype) == (device, dtype))

        return replace(self, cases=served(self.cases), traces=served(self.traces))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(device, dtype) of every pair of models to load."""
        return list(dict.fromkeys((case.device, case.dtype) for case in self.cases))


def case_name(case: Case) -> str:
    return f"{case}, seed {case.seed}"


def fit_budget(
    agenda: Agenda, seconds: float, rate: float, load: float, departures: Callable[[Case], int]
) -> Agenda:
    """The most valuable part of the agenda that fits into `seconds`.

    `rate`: seconds for one token of estimated work. `load`: seconds to load a further pair. Work
    that does not fit is passed over for shorter work. The first trace and the first case are always
    in.
    """
    chosen: set[tuple[str, Case]] = set()
    loaded = set(agenda.pairs[:1])
    for level, case in by_priority(agenda, departures):
        pair = case.device, case.dtype
        # A case takes a run of the base, a run of the candidate, and two with poison.
        tokens = estimated_trace_tokens(case) if level == "trace" else 4 * estimated_tokens(case)
        price = rate * tokens + (0.0 if pair in loaded else load)
        first = not any(level == chosen_level for chosen_level, _ in chosen)
        if price <= seconds or (first and pair in loaded):
            chosen.add((level, case))
            loaded.add(pair)
            seconds -= price
    return replace(
        agenda,
        cases=tuple(case for case in agenda.cases if ("case", case) in chosen),
        traces=tuple(case for case in agenda.traces if ("trace", case) in chosen),
        # Each of these two takes about as long as a few traces.
        poison_each=agenda.poison_each and seconds > 0,
        locality=agenda.locality and seconds > 0,
    )


def by_priority(agenda: Agenda, departures: Callable[[Case], int]) -> Iterator[tuple[str, Case]]:
    """All ("trace" or "case", case) of the agenda, the most valuable first.

    A trace in the main setting leads, because it holds for every inserted value. Then comes one
    case of every kind, main setting first, then the other traces, then second cases of a kind.
    `departures` says how far a case is from the main setting.
    """
    ranked: list[tuple[int, int, str, int, Case]] = []
    done: Counter[tuple[str, ...]] = Counter()
    for index, case in enumerate(agenda.traces):
        rank = min(done["trace", case.setting], 1) + departures(case)
        done["trace", case.setting] += 1
        ranked.append((rank, 0, "trace", index, case))
    nearest = sorted(agenda.cases, key=lambda case: abs(math.log2(case.length / _BEST_LENGTH)))
    for case in nearest:
        rank = done["case", case.setting, case.kind] + departures(case)
        done["case", case.setting, case.kind] += 1
        ranked.append((rank, estimated_tokens(case), "case", agenda.cases.index(case), case))
    for _, _, level, _, case in sorted(ranked, key=lambda entry: entry[:4]):
        yield level, case


def estimated_tokens(case: Case) -> int:
    """The estimated cost of one run of the case, in tokens."""
    tokens, calls = case_size(case)
    return tokens + _CALL_TOKENS * calls


def estimated_trace_tokens(case: Case) -> int:
    """The estimated cost of its trace: the base and the candidate, operation by operation."""
    tokens, calls = case_size(case)
    return 2 * (tokens + _TRACED_CALL_TOKENS * calls)


def case_size(case: Case) -> tuple[int, int]:
    """Tokens that a run forwards, and calls of the model. `generate` never forwards the last
    token."""
    calls = 1 + case.steps
    if case.path in GENERATES:
        calls = max(case.steps, 1)
    elif case.path == "chunked":
        calls = -(-case.length // max(case.chunk, 1))
    rows = case.batch * (_BEAMS if case.path == "beam" else 1)
    steps = 0 if case.path == "chunked" else calls - 1
    return rows * (case.length + steps), calls


@dataclass
class Cost:
    """Forwards and tokens of all models, and tokens by level. `longest`: tokens of the longest
    window in the grid."""

    longest: int = 0
    forwards: int = 0
    tokens: int = 0
    levels: dict[str, int] = field(default_factory=dict)

    @property
    def multiple(self) -> float:
        """All tokens, as a multiple of the longest window."""
        return self.tokens / max(self.longest, 1)

    @contextmanager
    def counting(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, every call of one of `models` is counted."""
        with ExitStack() as stack:
            for model in {id(model): model for model in models}.values():
                handle = model.register_forward_pre_hook(
                    self._count, prepend=True, with_kwargs=True
                )
                stack.callback(handle.remove)
            yield

    @contextmanager
    def of(self, level: str) -> Iterator[None]:
        """Inside, tokens are counted for this level too."""
        before = self.tokens
        try:
            yield
        finally:
            self.levels[level] = self.levels.get(level, 0) + self.tokens - before

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", inputs[0] if inputs else None)
        self.forwards += 1
        self.tokens += 0 if ids is None else ids.numel()

    def record(self) -> dict[str, Any]:
        return {**vars(self), "multiple": round(self.multiple, 3)}


class TimeBudget:
    """When to stop: after `budget` seconds (0 for no limit), or when the user interrupts.

    Levels look at `stop_reason` between two runs.
    """

    def __init__(
        self,
        interrupted: Callable[[], bool] = lambda: False,
        budget: float = 0.0,
        started: float | None = None,
    ) -> None:
        self._interrupted = interrupted
        start = monotonic() if started is None else started
        self._end = start + budget if budget else math.inf
        self._reason = ""
        self.advance: Advance = lambda tokens: None

    @property
    def seconds_left(self) -> float:
        return max(self._end - monotonic(), 0.0)

    @property
    def stop_reason(self) -> str:
        """Why the run ends early. Empty while it goes on."""
        if not self._reason and self._interrupted():
            self._reason = INTERRUPTED
        if not self._reason and not self.seconds_left:
            self._reason = BUDGET_SPENT
        return self._reason

    @contextmanager
    def show_progress(self, total: int) -> Iterator[None]:
        """Inside, `advance` shows the progress over `total` tokens of estimated work."""
        with progress(total, "verifying", first=_FIRST_LINE) as self.advance:
            yield
