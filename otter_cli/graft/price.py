"""The cost of an insertion before anything is written: parameters, bytes, KV cache, operations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.shape import base_parameters
from otter_cli.graft.plan import Plan
from otter_cli.signals.heads import HEADS, FutureHead, VocabularyHead

DTYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Price:
    """What one insertion adds to its base. Caches are in bytes per token of one sequence."""

    base_parameters: int
    inserted_parameters: int
    inserted_bytes: int
    by_part: dict[str, int]
    # None for families that cache something else than keys and values.
    base_cache_bytes_per_token: int | None
    inserted_cache_bytes_per_token: int
    # Weights of base and insertion, loaded in the base's dtype.
    load_bytes: int
    # For each signal of action values, multiply-adds at one position: "shared" by all candidate
    # tokens, for each further "token", and for "all" tokens of the vocabulary.
    vocabulary_work: dict[str, dict[str, int]]
    # For each signal of future tokens, multiply-adds of one draft in a chain.
    draft_work: dict[str, int]

    @property
    def ratio(self) -> float:
        """Inserted parameters over the base's."""
        return self.inserted_parameters / self.base_parameters

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "parameter_ratio": self.ratio}


def price(plan: Plan, base: Checkpoint) -> Price:
    """Prices a plan beside the base whose files are `base`."""
    shape, size = plan.shape, DTYPE_BYTES[base.dtype]
    count = base_parameters(base, shape)
    base_cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    parts: dict[str, int] = {}
    for tensor in plan.tensors:
        part = _part_name(tensor.name)
        parts[part] = parts.get(part, 0) + tensor.count
    return Price(
        base_parameters=count,
        inserted_parameters=plan.parameters,
        inserted_bytes=plan.stored_bytes,
        by_part=parts,
        base_cache_bytes_per_token=None if shape.family.ffn_only else base_cache,
        inserted_cache_bytes_per_token=plan.cache_bytes_per_token(size),
        load_bytes=(count + plan.parameters) * size,
        vocabulary_work=_vocabulary_work(plan),
        draft_work=_draft_work(plan),
    )


def _vocabulary_work(plan: Plan) -> dict[str, dict[str, int]]:
    costs = {}
    for signal in plan.config.signals:
        if isinstance(head := HEADS[signal.kind], VocabularyHead):
            cost = head.cost(signal, plan.shape.hidden, plan.config.hidden)
            whole = cost.shared + plan.shape.vocab * cost.each
            costs[signal.name] = {"shared": cost.shared, "token": cost.each, "all": whole}
    return costs


def _draft_work(plan: Plan) -> dict[str, int]:
    return {
        signal.name: head.draft_cost(
            signal, plan.shape.hidden, plan.config.hidden, plan.shape.vocab
        )
        for signal in plan.config.signals
        if isinstance(head := HEADS[signal.kind], FutureHead)
    }


def _part_name(name: str) -> str:
    """The heading of a tensor in the price: embedding, attention, ffn, norm or `signal NAME`."""
    parts = name.split(".")[2:]
    if parts[0] == "signals":
        return f"signal {parts[1]}"
    return parts[2] if parts[0] == "layers" else parts[0]
