"""What a verification costs, counted: the forwards that were run and the tokens fed to them.

Counts are the same on every machine, where seconds are not. `work` estimates one run in tokens: a
call counts as so many tokens more, since every call reads all weights and starts every kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otter_cli.verification.cases import GENERATES, Case

if TYPE_CHECKING:
    from torch import nn

_CALL = 32  # tokens that a call costs: 36 ms beside 1.1 ms a token, 135 M parameters in bfloat16
_TRACED_CALL = 320  # the same where every operation is looked at
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


def work(case: Case) -> int:
    """An estimate of one run of the case, in tokens."""
    tokens, calls = _size(case)
    return tokens + _CALL * calls


def traced_work(case: Case) -> int:
    """Of its trace: the base and the other model, operation by operation."""
    tokens, calls = _size(case)
    return 2 * (tokens + _TRACED_CALL * calls)


def _size(case: Case) -> tuple[int, int]:
    """Tokens that are fed, and calls. `generate` never feeds the last token."""
    calls = 1 + case.steps
    if case.path in GENERATES:
        calls = max(case.steps, 1)
    elif case.path == "chunked":
        calls = -(-case.length // max(case.chunk, 1))
    rows = case.batch * _ROWS.get(case.path, 1)
    steps = 0 if case.path == "chunked" else calls - 1
    return rows * (case.length + steps), calls
