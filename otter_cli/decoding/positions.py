"""Which signals a request reads before a text has ended."""

from __future__ import annotations

from collections.abc import Sequence

from otter_cli.core.console import warn
from otter_cli.decoding.gates import Gate
from otter_cli.decoding.guide import Guide
from otter_cli.decoding.signal_guide import SignalGuide
from otter_cli.decoding.stops import NO_STOPS, Stops
from otter_cli.insertion.positions import CHOOSE, GATE, GUIDE, MONITOR, REJECT, outside_training
from otter_cli.model import OtterForCausalLM


def warnings_of(
    model: OtterForCausalLM,
    *,
    guides: Sequence[Guide] = (),
    gate: Gate | None = None,
    stops: Stops = NO_STOPS,
    signals: Sequence[str] = (),
    blocks_by: str | None = None,
) -> list[str]:
    """A sentence for each signal that is read where it was not trained. `blocks_by`: the signal
    that chooses between blocks of unfinished texts."""
    uses: dict[str, list[str]] = {}
    for guide in guides:
        if isinstance(guide, SignalGuide) and any(guide.strengths):
            uses.setdefault(guide.signal, []).append(GUIDE)
    if gate is not None and gate.signal is not None:
        uses.setdefault(gate.signal.signal, []).append(GATE)
    for bound in stops.signals:
        uses.setdefault(bound.signal, []).append(REJECT)
    if blocks_by is not None:
        uses.setdefault(blocks_by, []).append(CHOOSE)
    for name in signals:
        uses.setdefault(name, []).append(MONITOR)
    return outside_training(model.manifest.training, uses)


def warn_once(model: OtterForCausalLM, warnings: Sequence[str]) -> None:
    """Warns of what this model has not been warned of: a benchmark asks once for each prompt."""
    for text in warnings:
        if text not in model.warned:
            model.warned.add(text)
            warn(text)
