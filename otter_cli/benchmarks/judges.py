"""Who gives an opinion of a whole response: what guides, and other folders."""

from collections.abc import Mapping
from pathlib import Path

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.contest import INSERTION
from otter_cli.benchmarks.models import Grafted, Models
from otter_cli.benchmarks.names import family
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.checkpoint.listing import MANIFEST


def judges(graft: Grafted, signal: str, others: Mapping[str, Path]) -> dict[str, Scorer]:
    """The graft's signal, and other folders: grafts by theirs, reward models. Raises OtterError."""
    from otter_cli.benchmarks.scorers.reward_model import RewardModelScorer
    from otter_cli.benchmarks.scorers.signal import SignalScorer

    models = Models(graft, signal)
    found: dict[str, Scorer] = {INSERTION: SignalScorer(graft, signal)}
    for name, folder in others.items():
        if (folder / MANIFEST).is_file():
            found[name] = SignalScorer(models.grafted(folder, signal), signal)
        else:
            found[name] = RewardModelScorer(*models.reward_model(folder))
    return found


def guiding(methods: Mapping[str, Method]) -> dict[str, Scorer]:
    """What guides, each once, under the name of the first method that it guides."""
    found: dict[str, Scorer] = {}
    for name, method in methods.items():
        known = [scorer.record.digest for scorer in found.values()]
        if method.judge is not None and method.judge.record.digest not in known:
            found[family(name)] = method.judge
    return found
