"""Where in a text a signal was trained, and what is read elsewhere.

A reward that was trained at the last token of whole texts says nothing of a text that is still
being written. Guided by one all the same, a base's answers were worse by a gold reward, without a
word of warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from otter_cli.insertion.manifest import LAST, TrainingRecord

# What reads a signal before a text has ended.
GUIDE = "guides"
GATE = "opens a gate"
REJECT = "rejects"
CHOOSE = "chooses between unfinished texts"
MONITOR = "is read at every token"


def outside_training(
    training: Mapping[str, TrainingRecord], uses: Mapping[str, Sequence[str]]
) -> list[str]:
    """A sentence for each signal that `uses` read before a text's end, and that was trained at its
    last token alone. Of records that do not say where, as older ones, nothing is known: none."""
    return [
        f"signal {name!r} was trained at the last token of whole texts alone, but here it "
        f"{_listed(read)} before that: those values are untrained and mean nothing; train it with "
        "`positions: every`"
        for name, read in uses.items()
        if read and name in training and training[name].positions == LAST
    ]


def _listed(uses: Sequence[str]) -> str:
    known = list(dict.fromkeys(uses))
    return " and ".join([", ".join(known[:-1]), known[-1]] if len(known) > 1 else known)
