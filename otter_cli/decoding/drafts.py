"""What a drafter proposes: a tree of tokens after the pending one, of one shape for all rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State


@dataclass
class Draft:
    """Tokens [rows, n]; `parents[i]` is the draft that token i follows, -1 the pending token;
    `counted` [rows, n]: which of them a row has at all. Of siblings the better ones come first."""

    tokens: Tensor
    parents: list[int]
    counted: Tensor

    @staticmethod
    def chain(tokens: Tensor, lengths: Tensor) -> Draft:
        """Each token after the one before it; the first `lengths` [rows] count."""
        n = tokens.shape[1]
        counted = torch.arange(n, device=tokens.device) < lengths[:, None]
        return Draft(tokens, list(range(-1, n - 1)), counted)

    @property
    def depths(self) -> list[int]:
        """Of each token, from 1."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 + (found[parent] if parent >= 0 else 0))
        return found

    def lengths(self) -> Tensor:
        """How far after the pending token each row's drafts reach, [rows]."""
        found = torch.zeros_like(self.counted.sum(1))
        for depth, counted in zip(self.depths, self.counted.unbind(1), strict=True):
            found = torch.where(counted, found.clamp(min=depth), found)
        return found

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(-1, len(self.parents) - 1))

    def within(self, depth: int) -> Draft:
        """The drafts that lie at most `depth` tokens after the pending one."""
        kept = [i for i, at in enumerate(self.depths) if at <= depth]
        place = {old: new for new, old in enumerate(kept)}
        parents = [place.get(self.parents[i], -1) for i in kept]
        return Draft(self.tokens[:, kept], parents, self.counted[:, kept])

    def children(self) -> Tensor:
        """[1 + n, widest]: the drafts that follow the pending token, draft 0, ...; -1 fills up."""
        found: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        for node, parent in enumerate(self.parents):
            found[parent + 1].append(node)
        width = max(map(len, found))
        filled = [nodes + [-1] * (width - len(nodes)) for nodes in found]
        return torch.tensor(filled, dtype=torch.long, device=self.tokens.device)


class Drafting(ABC):
    """A drafter at work on one batch; what it runs beside the base counts."""

    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to a model of its own, where there is one."""
        return

    @abstractmethod
    def draft(self, state: State, texts: Sequence[Sequence[int]]) -> Draft:
        """After texts that end in the pending token, by the base's state [rows, 1, d] before it."""


class Drafter(ABC):
    """A frozen request for drafts."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_stream: ClassVar[bool] = False

    @abstractmethod
    def start(self, session: DecodingSession) -> Drafting:
        """Raises OtterError where the drafter can't work with the session's graft."""
