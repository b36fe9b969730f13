"""What figures are drawn from, whether the run has just ended or lies in a folder."""

from collections.abc import Mapping
from dataclasses import dataclass

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
