"""Sizes that a tensor-parallel engine splits without filling up: its ranks take equal shares."""

from __future__ import annotations

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig


def check_ranks(config: InsertionConfig, shape: BaseShape, ranks: int) -> None:
    """Raises OtterError, with the next sizes that divide, where zero heads or units would be
    needed; and for a number of ranks that splits the base itself unevenly."""
    if ranks < 1 or shape.heads % ranks or shape.ffn % ranks:
        raise OtterError(
            f"--tensor-parallel {ranks}: the base has {shape.heads} heads and {shape.ffn} FFN "
            "units, which do not divide by it",
            hint="choose a number of ranks that divides both",
        )
    wanted = {**_heads(config, shape, ranks), "ffn": round_up(config.ffn, ranks)}
    wrong = [name for name, size in wanted.items() if getattr(config, name) != size]
    if wrong:
        sizes = ", ".join(f"{getattr(config, name)} {name.replace('_', '-')}" for name in wrong)
        options = " ".join(f"--{n.replace('_', '-')} {size}" for n, size in wanted.items())
        raise OtterError(
            f"--tensor-parallel {ranks}: {sizes} are no equal shares of {ranks} ranks",
            hint=f"{options}; without --tensor-parallel an engine fills up with zeros",
        )


def _heads(config: InsertionConfig, shape: BaseShape, ranks: int) -> dict[str, int]:
    """Each key/value head has the same number of query heads, each rank the same number of both;
    ranks that share one of the base's key/value heads split its query heads."""
    if not config.heads:
        return {}
    share = config.heads // config.kv_heads
    if config.kv == "own":
        kv_heads = round_up(config.kv_heads, ranks)
    else:
        kv_heads, share = shape.kv_heads, round_up(share, max(1, ranks // shape.kv_heads))
    # No more heads than the base has.
    return {"heads": min(share, shape.heads // kv_heads) * kv_heads, "kv_heads": kv_heads}


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
