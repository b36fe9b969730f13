"""The sizes and form of one insertion, as the user gives them and as otter.json records them.

`resolve_config` fills in default sizes (1/16 of the base's). `check_tensor_parallel` checks that a
tensor-parallel engine can split the sizes into equal shares.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig
from otter_cli.families.shape import BaseShape
from otter_cli.signals.config import SignalConfig

# No base is larger than this in any one dimension; `check` compares with the base itself.
Size = Annotated[int, Field(ge=0, le=1 << 24)]
Initialisation = Literal["copy", "normal", "random", "zero-output"]

# Of a folder that is read, where no option can be changed.
_CONFIG_MISMATCH_HINT = (
    "otter.json does not fit config.json: one is damaged, or belongs to another folder"
)


class InsertionConfig(StrictConfig):
    """METHOD, 1: `hidden` D, `heads` A, `kv_heads` B, `ffn` f. D = 0 is a probe: heads on the
    base's state alone."""

    # Part of the tensors' names: `otter.main.norm.weight`.
    name: str = Field(default="main", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    hidden: Size
    heads: Size
    ffn: Size
    kv: Literal["own", "base"] = "own"
    kv_heads: Size = 0
    # First of the base's key/value heads that are read; with own ones it has no meaning.
    kv_start: Size = 0
    layers: tuple[Size, ...]
    norm: Literal["own", "base"] = "own"
    embedding: Literal["table", "zeros"] = "table"
    init: Initialisation = "copy"
    seed: int = 0
    dtype: Literal["F32", "BF16", "F16"] = "F32"
    signals: tuple[SignalConfig, ...] = ()

    def check(self, shape: BaseShape, where: str = "--") -> None:
        """Raises OtterError for what does not fit the base; `where` goes before a name: options by
        default."""
        place = "" if where == "--" else where

        def fault(what: str, hint: str) -> OtterError:
            return OtterError(what, hint=hint if where == "--" else _CONFIG_MISMATCH_HINT)

        limits = (
            ("hidden", self.hidden, shape.hidden),
            ("heads", self.heads, shape.heads),
            ("ffn", self.ffn, shape.ffn),
        )
        for name, value, limit in limits:
            if not 0 <= value <= limit:
                raise fault(
                    f"{where}{name} {value} is not from 0 to the base's {limit}",
                    "leave the option out for a sixteenth of the base's",
                )
        family = shape.family
        if self.heads and family.ffn_only:
            raise fault(
                f"{where}heads {self.heads}: {family.model_type} takes no inserted heads: "
                f"{family.ffn_only}",
                "leave --heads out: hidden and FFN units go in, and attention is still read",
            )
        if self.heads and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise fault(
                f"{where}heads {self.heads} is not a multiple of its {self.kv_heads} "
                "key/value heads",
                "query heads share key/value heads in equal groups",
            )
        if (
            self.heads
            and self.kv == "base"
            and not 0 <= self.kv_start <= shape.kv_heads - self.kv_heads
        ):
            raise fault(
                f"{place}{self.kv_heads} key/value heads from {self.kv_start} on are not among the "
                f"base's {shape.kv_heads}",
                "lower --kv-heads or --kv-start",
            )
        if any(not 0 <= layer < shape.layers for layer in self.layers) or len(
            set(self.layers)
        ) < len(self.layers):
            raise fault(
                f"{place}layers {list(self.layers)} are not distinct layers of 0 to "
                f"{shape.layers - 1}",
                "for example --layers 8:24 or --layers last:8",
            )
        names = [signal.name for signal in self.signals]
        if len(set(names)) < len(names):
            raise fault(
                f"{place}two signals are called {max(names, key=names.count)!r}",
                "name one of them: --signal other=value",
            )


def resolve_config(
    shape: BaseShape,
    *,
    hidden: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
    kv_heads: int | None = None,
    layers: tuple[int, ...] | None = None,
    **rest: object,
) -> InsertionConfig:
    """An insertion for a base: what is not asked for is a sixteenth of its. Raises OtterError."""
    hidden = _round_to_eight(shape.hidden // 16) if hidden is None else hidden
    usual = 0 if shape.family.ffn_only else max(1, shape.heads // 16)
    heads = (usual if heads is None else heads) if hidden else 0
    ffn = (_round_to_eight(shape.ffn // 16) if ffn is None else ffn) if hidden else 0
    if kv_heads is None:
        kv_heads = _default_base_kv_heads(heads, shape) if rest.get("kv") == "base" else heads
    layers = tuple(range(shape.layers)) if layers is None else layers
    sizes = {"hidden": hidden, "heads": heads, "ffn": ffn, "kv_heads": kv_heads if heads else 0}
    try:
        config = InsertionConfig.model_validate(
            {**sizes, "layers": layers if hidden else (), **rest}
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise OtterError(
            f"{option} {first['input']}: {first['msg']}", hint="see otter graft --help"
        ) from None
    config.check(shape)
    return config


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Reads `8:24`, `last:8`, `first:4`, `3,5,7` or `all`. Raises OtterError."""
    start, _, stop = text.partition(":")
    try:
        if text == "all":
            return tuple(range(count))
        if start == "last":
            return tuple(range(count - int(stop), count))
        if start == "first":
            return tuple(range(int(stop)))
        if ":" in text:
            return tuple(range(int(start or 0), int(stop or count)))
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OtterError(
            f"--layers {text!r} cannot be read", hint="8:24, first:4, last:8, 3,5,7 or all"
        ) from None


def _round_to_eight(width: int) -> int:
    """A multiple of 8, at least 8: what vectorised kernels like."""
    return max(8, width // 8 * 8)


def _default_base_kv_heads(heads: int, shape: BaseShape) -> int:
    """How many of the base's key/value heads to read: as many as divide the inserted query
    heads."""
    return max((n for n in range(1, min(heads, shape.kv_heads) + 1) if heads % n == 0), default=0)


def check_tensor_parallel(config: InsertionConfig, shape: BaseShape, ranks: int) -> None:
    """Raises OtterError, with the next sizes that divide, where zero heads or units would be
    needed; and for a number of ranks that splits the base itself unevenly."""
    if ranks < 1 or shape.heads % ranks or shape.ffn % ranks:
        raise OtterError(
            f"--tensor-parallel {ranks}: the base has {shape.heads} heads and {shape.ffn} FFN "
            "units, which do not divide by it",
            hint="choose a number of ranks that divides both",
        )
    wanted = {**_evenly_split_heads(config, shape, ranks), "ffn": round_up(config.ffn, ranks)}
    wrong = [name for name, size in wanted.items() if getattr(config, name) != size]
    if wrong:
        sizes = ", ".join(f"{getattr(config, name)} {name.replace('_', '-')}" for name in wrong)
        options = " ".join(f"--{n.replace('_', '-')} {size}" for n, size in wanted.items())
        raise OtterError(
            f"--tensor-parallel {ranks}: {sizes} are no equal shares of {ranks} ranks",
            hint=f"{options}; without --tensor-parallel an engine fills up with zeros",
        )


def _evenly_split_heads(config: InsertionConfig, shape: BaseShape, ranks: int) -> dict[str, int]:
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
