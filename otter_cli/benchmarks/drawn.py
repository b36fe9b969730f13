"""What figures are drawn from, whether the run has just ended or lies in a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Self

from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Rows
from otter_cli.benchmarks.scorers import ScorerRecord
from otter_cli.benchmarks.settings import MethodRecord


@dataclass(frozen=True)
class Drawn:
    """Every method's rows, in the order of `prompts`, its record and parameters' bytes, and by role
    who scored."""

    prompts: tuple[BenchPrompt, ...]
    rows: Mapping[str, Rows]
    weights: Mapping[str, int]
    methods: Mapping[str, MethodRecord]
    scorers: Mapping[str, ScorerRecord]
    sampling: Mapping[str, Any]

    @property
    def greedy(self) -> bool:
        return self.sampling["temperature"] == 0

    @property
    def categories(self) -> list[str]:
        """Of the prompts, in their order; none where all are of one."""
        found = list(dict.fromkeys(prompt.category for prompt in self.prompts))
        return found if len(found) > 1 else []

    def only(self, category: str) -> Self:
        """The prompts of a category, with their rows."""
        kept = [prompt.category == category for prompt in self.prompts]
        rows = {
            name: Rows([group for group, keep in zip(own.groups, kept, strict=True) if keep])
            for name, own in self.rows.items()
        }
        return replace(self, prompts=tuple(compress(self.prompts, kept)), rows=rows)
