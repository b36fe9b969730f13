"""What a method is made from."""

from collections.abc import Sequence
from typing import Any

from otter_cli.benchmarks.benchmark import Generate, Method
from otter_cli.benchmarks.models import Grafted, Loaded, Models, bytes_of
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.settings import MethodRecord
from otter_cli.decoding import Guide, generate
from otter_cli.decoding.positions import warnings_of


class Entrant:
    """What a method is made of: the graft it runs on, its signal, and how others are loaded."""

    def __init__(self, graft: Grafted, signal: str, models: Models) -> None:
        self.graft, self.signal, self.models = graft, signal, models

    def method(
        self,
        label: str,
        call: Generate,
        steering: dict[str, Any],
        *beside: Loaded,
        stream: bool = True,
        judge: Scorer | None = None,
        warnings: Sequence[str] = (),
    ) -> Method:
        """`beside`: models that it runs next to the base; `stream`: whether the insertion runs."""
        own = self.graft.bytes if stream else self.graft.base_bytes
        records = [self.graft.record, *(one.record for one in beside)]
        record = MethodRecord(label=label, models=records, steering=steering)
        held = own + sum(bytes_of(one.model.parameters()) for one in beside)
        return Method(label, record, call, held, judge, tuple(warnings))

    def guided(
        self,
        label: str,
        guide: Guide | Sequence[Guide],
        steering: dict[str, Any],
        *beside: Loaded,
        read: bool = False,
        judge: Scorer | None = None,
    ) -> Method:
        """`read`: keep the signal at every token beside the samples."""
        model, signals = self.graft.model, (self.signal,) if read else ()
        guides = [guide] if isinstance(guide, Guide) else list(guide)
        return self.method(
            label,
            lambda p, s: generate(model, p, s, guide=guide, signals=signals),
            steering,
            *beside,
            stream=not beside,
            judge=judge,
            warnings=warnings_of(model, guides=guides, signals=signals),
        )


def signal_judge(of: Entrant) -> Scorer:
    from otter_cli.benchmarks.scorers.signal import SignalScorer

    return SignalScorer(of.graft, of.signal)


def reward_judge(loaded: Loaded) -> Scorer:
    from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer

    return RewardModelScorer(loaded.model, loaded.tokenizer, loaded.record)
