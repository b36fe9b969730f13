"""What one branch of a decoder layer adds to the inserted stream, and what it reads: METHOD, 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.families import Attention, BaseShape, FeedForward
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.joint import Joint, rows
from otter_cli.model.norms import PostNorm, StreamNorm

if TYPE_CHECKING:
    from otter_cli.model.chosen import Chosen


@dataclass(slots=True)
class AttentionCall:
    """What the base's own attention call was given, so that inserted heads repeat it and no mask is
    rebuilt."""

    function: Callable[..., tuple[Tensor, Any]]
    module: nn.Module
    key: Tensor  # [batch, kv_heads, positions, head_dim], rotated, the cache included
    value: Tensor
    mask: Tensor | None
    arguments: dict[str, Any]


@dataclass(slots=True)
class BranchTap:
    """What the hooks of one branch hand over: [batch, tokens, ...], or flattened to rows, or those
    of the chosen positions alone."""

    normed: Tensor  # x
    residual: Tensor | None  # h before the norm, where a norm of the stream reads it
    part: Tensor | None = None  # a or m, or the whole branch's output
    branch: Tensor | None = None  # what the norm after the branch is given

    def at(self, chosen: Chosen) -> BranchTap:
        """At the chosen positions alone, [N, ...]."""
        each = self.residual, self.part, self.branch
        return BranchTap(
            chosen.of(self.normed), *(None if one is None else chosen.of(one) for one in each)
        )


@dataclass(slots=True)
class AttentionTap(BranchTap):
    named: dict[str, Any] = field(default_factory=dict)  # what the attention module was called with
    call: AttentionCall | None = None

    @property
    def embeddings(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the positions."""
        return self.named.get("position_embeddings")

    @property
    def cache(self) -> Cache | None:
        return next((value for value in self.named.values() if isinstance(value, Cache)), None)


class InsertedBranch(nn.Module):
    """`z += P(t W^h + t' W^z)`: t the base's part, t' the inserted one, P the norm after the branch
    in families that have one. z and all that reads it are rows, [batch * tokens, ...] or those of
    the chosen positions."""

    def __init__(
        self,
        config: InsertionConfig,
        shape: BaseShape,
        block: Attention | FeedForward,
        thin: int,
    ) -> None:
        super().__init__()
        self.thin = thin
        if thin:
            self.norm = StreamNorm(config, shape)
        self.post_norm = PostNorm(config, shape) if block.post_norm else None
        self.joints: list[Joint] = []

    def joint(self, *parts: Any) -> Joint:
        made = Joint(*parts)
        self.joints.append(made)
        return made

    def land(
        self, product: Joint, z: Tensor, tap: BranchTap, mine: Tensor | None, made: Tensor | None
    ) -> Tensor:
        assert tap.part is not None
        if self.post_norm is None:
            return product.add(z, tap.part, mine, made)
        assert tap.branch is not None
        return z + self.post_norm(product(tap.part, mine, made), rows(tap.branch))

    def normed(self, z: Tensor, tap: BranchTap) -> Tensor:
        """u."""
        return self.norm(z, None if tap.residual is None else rows(tap.residual))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for joint in self.joints:
            joint.forget()
        return self


def read_of(
    block: Attention | FeedForward, inner: int, hidden: int, bias: bool
) -> tuple[int, bool]:
    """Width of what the stream reads of a branch, and whether a bias is still to be added to it."""
    return (inner, bias) if block.tap == "input" else (hidden, False)
