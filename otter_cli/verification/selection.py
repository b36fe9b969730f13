"""What of a verification is to be run, and what was left out. No torch.

A verification that ends early, or that has a budget of seconds, leaves some of its work out. What
was done is written into the proof, so that a second run does exactly that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from otter_cli.verification.cases import Case
from otter_cli.verification.cost import traced_work, work

_TELLING = 33  # tokens of the most telling prompt: no kernel blocks by them, and it is short


@dataclass(frozen=True)
class Selection:
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

    def only(self, chosen: Selection) -> Agenda:
        """What a proof says was done, of what the grid has. A proof cannot add to the grid."""
        cases, traces = set(chosen.cases), set(chosen.traces)
        return Agenda(
            tuple(case for case in self.cases if name(case) in cases),
            tuple(case for case in self.traces if name(case) in traces),
            frozenset(chosen.poisoned),
            chosen.each,
            chosen.locality,
        )

    def poisons(self, case: Case) -> bool:
        return self.poisoned is None or name(case) in self.poisoned

    def of(self, device: str, dtype: str) -> Agenda:
        """The part that one loaded pair serves."""

        def here(cases: tuple[Case, ...]) -> tuple[Case, ...]:
            return tuple(case for case in cases if (case.device, case.dtype) == (device, dtype))

        return Agenda(here(self.cases), here(self.traces), self.poisoned, self.each, self.locality)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(device, dtype) of every pair to load."""
        return list(dict.fromkeys((case.device, case.dtype) for case in self.cases))


def name(case: Case) -> str:
    return f"{case}, seed {case.seed}"


def within(
    agenda: Agenda, seconds: float, rate: float, load: float, departures: Callable[[Case], int]
) -> Agenda:
    """The most valuable part of the agenda that fits: `rate` seconds for each token of estimated
    work, `load` for each further pair. Work that is too long is passed over for shorter work. The
    first trace and the first case are always in."""
    chosen: set[tuple[str, Case]] = set()
    loaded = {(agenda.cases[0].device, agenda.cases[0].dtype)} if agenda.cases else set()
    for level, case in by_value(agenda, departures):
        group = case.device, case.dtype
        price = rate * _work(level, case) + (0.0 if group in loaded else load)
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


def by_value(agenda: Agenda, departures: Callable[[Case], int]) -> Iterator[tuple[str, Case]]:
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
    telling = sorted(agenda.cases, key=lambda case: abs(math.log2(case.length / _TELLING)))
    for case in telling:
        turn = seen["case", case.setting, case.kind]
        seen["case", case.setting, case.kind] += 1
        rank = float(turn + departures(case)), float(work(case))
        ranked.append((rank, agenda.cases.index(case), "case", case))
    for _, _, level, case in sorted(ranked, key=lambda entry: (entry[0], entry[2], entry[1])):
        yield level, case


def _work(level: str, case: Case) -> int:
    # A case: the base, the other model, and two runs with poison.
    return traced_work(case) if level == "trace" else 4 * work(case)
