"""The sizes and form of one insertion, as the user gives them and as otter.json records them.

`resolve_config` fills in default sizes (1/16 of the base's). `check_tensor_parallel` checks that a
tensor-parallel engine can split the sizes into equal shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StoredDtype, StrictConfig
from otter_cli.families.shape import BaseShape
from otter_cli.signals.config import SignalConfig

# No base is larger than this in any one dimension. `check` compares with the base itself.
Size = Annotated[int, Field(ge=0, le=1 << 24)]
Initialisation = Literal["copy", "normal", "random", "zero-output"]

# The hint for a folder on disk, where the user can change no option.
_CONFIG_MISMATCH_HINT = (
    "otter.json does not fit config.json: one is damaged, or belongs to another folder"
)


class InsertionConfig(StrictConfig):
    """Sizes as in docs/method.md, "Symbols": `hidden` D, `heads` A, `kv_heads` B, `ffn` f.

    D = 0 is a probe: signal heads that read the base's final state alone.
    """

    # Part of the tensors' names: `otter.main.norm.weight`.
    name: str = Field(default="main", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    hidden: Size
    heads: Size
    ffn: Size
    kv: Literal["own", "base"] = "own"
    kv_heads: Size = 0
    # With `kv: base`, the first of the base's key/value heads that are read.
    kv_start: Size = 0
    layers: tuple[Size, ...]
    norm: Literal["own", "base"] = "own"
    embedding: Literal["table", "zeros"] = "table"
    init: Initialisation = "copy"
    seed: int = 0
    dtype: Annotated[Literal["F32", "BF16", "F16"], StoredDtype] = "F32"
    signals: tuple[SignalConfig, ...] = ()

    def check(self, shape: BaseShape, where: str = "") -> None:
        """Raises OtterError for the first size that does not fit the base.

        `where` is the place of this configuration in a file. Without it, errors name the options of
        `otter graft`.
        """
        for option, what, hint in self._mismatches(shape):
            prefix = where or ("--" if option else "")
            raise OtterError(prefix + what, hint=_CONFIG_MISMATCH_HINT if where else hint)

    def _mismatches(self, shape: BaseShape) -> Iterator[tuple[bool, str, str]]:
        """Whether the text begins with an option's name, what is wrong, and a hint."""
        for name in ("hidden", "heads", "ffn"):
            value, limit = getattr(self, name), getattr(shape, name)
            if value > limit:
                what = f"{name} {value} is not from 0 to the base's {limit}"
                yield True, what, "leave the option out for a sixteenth of the base's"
        family = shape.family
        if self.heads and family.ffn_only:
            refused = f"{family.model_type} takes no inserted heads: {family.ffn_only}"
            hint = "leave --heads out: hidden and FFN units are inserted, attention is still read"
            yield True, f"heads {self.heads}: {refused}", hint
        if self.heads and (self.kv_heads < 1 or self.heads % self.kv_heads):
            yield (
                True,
                f"heads {self.heads} is not a multiple of its {self.kv_heads} key/value heads",
                "query heads share key/value heads in equal groups",
            )
        if self.heads and self.kv == "base" and self.kv_start + self.kv_heads > shape.kv_heads:
            read = f"{self.kv_heads} key/value heads from {self.kv_start} on"
            what = f"{read} are not among the base's {shape.kv_heads}"
            yield False, what, "lower --kv-heads or --kv-start"
        repeated = len(set(self.layers)) < len(self.layers)
        if repeated or max(self.layers, default=-1) >= shape.layers:
            yield (
                False,
                f"layers {list(self.layers)} are not distinct layers of 0 to {shape.layers - 1}",
                "for example --layers 8:24 or --layers last:8",
            )
        names = [signal.name for signal in self.signals]
        if len(set(names)) < len(names):
            yield (
                False,
                f"two signals are called {max(names, key=names.count)!r}",
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
    **options: object,
) -> InsertionConfig:
    """Fills in the sizes that are None: 1/16 of the base's, in every layer.

    `options` are the other fields of InsertionConfig. Raises OtterError for what does not fit.
    """
    hidden = _round_to_eight(shape.hidden // 16) if hidden is None else hidden
    if not hidden:
        heads, ffn, kv_heads, layers = 0, 0, 0, ()
    if heads is None:
        heads = 0 if shape.family.ffn_only else max(1, shape.heads // 16)
    if ffn is None:
        ffn = _round_to_eight(shape.ffn // 16)
    if not heads:
        kv_heads = 0
    elif kv_heads is None and options.get("kv") == "base":
        # The most of the base's key/value heads that divide the inserted query heads.
        most = min(heads, shape.kv_heads)
        kv_heads = max((n for n in range(1, most + 1) if heads % n == 0), default=0)
    elif kv_heads is None:
        kv_heads = heads
    layers = tuple(range(shape.layers)) if layers is None else layers
    sizes = {"hidden": hidden, "heads": heads, "ffn": ffn, "kv_heads": kv_heads}
    try:
        config = InsertionConfig.model_validate({**sizes, "layers": layers, **options})
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
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise OtterError(
            f"--layers {text!r} cannot be read", hint="8:24, first:4, last:8, 3,5,7 or all"
        ) from None


def _round_to_eight(width: int) -> int:
    """A multiple of 8, at least 8, as vectorised kernels prefer."""
    return max(8, width // 8 * 8)


def check_tensor_parallel(config: InsertionConfig, shape: BaseShape, ranks: int) -> None:
    """Raises OtterError where `ranks` cannot share the base or the insertion evenly.

    The hint names the next larger sizes that need no padding with zeros.
    """
    if ranks < 1 or shape.heads % ranks or shape.ffn % ranks:
        raise OtterError(
            f"--tensor-parallel {ranks}: the base has {shape.heads} heads and {shape.ffn} FFN "
            "units, which do not divide by it",
            hint="choose a number of ranks that divides both",
        )
    even = {**_evenly_split_heads(config, shape, ranks), "ffn": round_up(config.ffn, ranks)}
    uneven = [name for name, size in even.items() if getattr(config, name) != size]
    if uneven:
        sizes = ", ".join(f"{getattr(config, name)} {name.replace('_', '-')}" for name in uneven)
        options = " ".join(f"--{n.replace('_', '-')} {size}" for n, size in even.items())
        raise OtterError(
            f"--tensor-parallel {ranks}: {sizes} do not split into {ranks} equal shares",
            hint=f"{options}; without --tensor-parallel an engine pads with zeros",
        )


def _evenly_split_heads(config: InsertionConfig, shape: BaseShape, ranks: int) -> dict[str, int]:
    """Heads and key/value heads that `ranks` share evenly, each key/value head with equally many
    query heads. Ranks that share one of the base's key/value heads split its query heads."""
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
