"""The cases that are compared, and the grids that list them. No torch.

A case is one way of running a model: a path, lengths, batch, padding, dtype, attention, device and
seed. A quick grid runs all of its cases in the base's main setting, and a few revealing ones in the
other settings. A full grid runs all cases in all settings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed

FORWARDS = ("prefill", "decode", "chunked", "static", "checkpointing")
GENERATES = ("greedy", "beam", "sample", "assisted")


@dataclass(frozen=True)
class Case:
    """One way of running a model on tokens drawn from `seed`.

    `path` is one of: prefill; decode, a prefill and `steps` cached steps; chunked, a prefill in
    chunks of `chunk` tokens; static, as decode with a static cache; checkpointing, a prefill in
    training mode; greedy, beam, sample and assisted, `generate` of `steps` tokens. Padded rows have
    unequal lengths up to `length`. `keep`: logits_to_keep. `threads`: 0 for as many as the process
    has.
    """

    path: str
    length: int
    batch: int = 1
    padding: str = "none"
    steps: int = 0
    chunk: int = 0
    keep: int = 0
    threads: int = 0
    attention: str = "sdpa"
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    @property
    def tokens(self) -> int:
        return self.batch * (self.length + self.steps)

    @property
    def kind(self) -> str:
        """The path with batch and padding: cases of one kind differ in lengths only."""
        batch = ", batch" if self.batch > 1 and self.padding == "none" else ""
        return self.path + batch + (f", {self.padding} padding" if self.padding != "none" else "")

    @property
    def label(self) -> str:
        """The case in words, without its setting (dtype, attention, device)."""
        words = [self.path, f"{self.length} tokens"]
        words += [f"batch {self.batch}"] if self.batch > 1 else []
        words += [f"{self.padding} padding"] if self.padding != "none" else []
        words += [f"{self.steps} steps"] if self.steps else []
        words += [f"chunks of {self.chunk}"] if self.chunk else []
        words += [f"{self.keep} logits kept"] if self.keep else []
        words += [f"{self.threads} threads"] if self.threads else []
        return ", ".join(words)

    @property
    def setting(self) -> str:
        device = "" if self.device == "cpu" else f", {self.device}"
        return f"{self.dtype}, {self.attention}{device}"

    def __str__(self) -> str:
        return f"{self.label} ({self.setting})"


GridName = Literal["quick", "full"]

ATTENTIONS = ("eager", "sdpa")
DTYPES: dict[GridName, tuple[str, ...]] = {
    "quick": ("float32", "bfloat16"),
    "full": ("float32", "bfloat16", "float16"),
}
# Longer windows are cut, because their cost grows with the square of the length.
_LONGEST_WINDOW: dict[GridName, int] = {"quick": 512, "full": 2048}
_LENGTHS = (1, 2, 7, 33, 128)
# The cases that differ first where a dtype or an attention implementation differs at all: lengths
# that are no multiple of a kernel's block, padded rows, cached steps, other caches. The most
# revealing first.
_REVEALING_CASES = (
    Case("decode", 24, batch=4, padding="left", steps=6),
    Case("prefill", 33),
    Case("prefill", 128),
    Case("prefill", 40, batch=4, padding="right"),
    Case("chunked", 40, chunk=16),
    Case("static", 17, steps=4),
)


@dataclass(frozen=True)
class Grid:
    """A named grid, and `random` further cases whose settings are drawn too.

    `seed` decides on tokens and random cases. Without `dtypes`, those of the named grid are used.
    `main`: the dtype and attention that the base is served in. A quick grid runs whole there, and
    its revealing cases in the other settings. Without a main setting it runs whole in every
    setting.
    """

    name: GridName = "quick"
    random: int = 0
    seed: int = 0
    dtypes: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ATTENTIONS
    devices: tuple[str, ...] = ("cpu",)
    # None: not known yet. (): there is no main setting.
    main: tuple[str, str] | tuple[()] | None = None

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            if dtype not in DTYPES["full"]:
                raise OtterError(
                    f"--dtype {dtype!r} is none of the grid's",
                    hint=f"known: {', '.join(DTYPES['full'])}",
                )

    def around(self, dtype: str, attention: str) -> Grid:
        """The same grid with the main setting of a base that is stored in `dtype`. A full grid, or
        one whose main setting is decided already, stays as it is."""
        if self.name == "full" or self.main is not None:
            return self
        known = dtype if dtype in DTYPES["full"] else "float32"
        return replace(self, main=(known, attention))

    def cases(self, positions: int) -> list[Case]:
        """All cases for a base of so many positions. Those of one device and dtype are adjacent."""
        window = min(positions, _LONGEST_WINDOW[self.name])
        dtypes = self._dtypes()
        named = [
            replace(path, attention=attention, dtype=dtype, device=device)
            for device in self.devices
            for dtype in dtypes
            for attention in self.attentions
            for path in _fit_window(self._paths(dtype, attention, window), window)
        ]
        drawn = [self._draw(index, window, dtypes) for index in range(self.random)]
        seeded = [replace(case, seed=derive_seed(self.seed, case.label)) for case in named]
        return sorted([*seeded, *drawn], key=lambda case: (case.device, dtypes.index(case.dtype)))

    def departures(self, dtype: str, attention: str) -> int:
        """In how many of dtype and attention a setting differs from the main one: 0, 1 or 2."""
        if not self.main:
            return 0
        main = self.main[1] if self.main[1] in self.attentions else self.attentions[0]
        # Dtypes that the user names are equally important.
        return int(not self.dtypes and dtype != self.main[0]) + int(attention != main)

    def _dtypes(self) -> tuple[str, ...]:
        if self.dtypes or not self.main:
            return self.dtypes or DTYPES[self.name]
        stored = self.main[0]
        return stored, next(dtype for dtype in DTYPES["quick"] if dtype != stored)

    def _paths(self, dtype: str, attention: str, window: int) -> list[Case]:
        if departures := self.departures(dtype, attention):
            return list(_REVEALING_CASES if departures == 1 else _REVEALING_CASES[:2])
        # Eager attention stores a value for every pair of positions, several times.
        longest = max(window // 2, 1) if attention == "eager" else window
        return [*_quick(longest), *(_full(window) if self.name == "full" else ())]

    def _draw(self, index: int, window: int, dtypes: tuple[str, ...]) -> Case:
        seed = derive_seed("random case", self.seed, index)
        draw = random.Random(seed)
        path = draw.choice((*FORWARDS, *GENERATES))
        steps = draw.randint(1, 8) if path in ("decode", "static", *GENERATES) else 0
        length = max(1, min(int(2 ** draw.uniform(0, 7)), window - steps))
        # transformers verifies drafts for one row only.
        batch = 1 if path == "assisted" else draw.choice((1, 1, 2, 3, 4, 5))
        sides = ("none", "left", "right") if path == "prefill" else ("none", "left")
        padded = batch > 1 and path in ("prefill", "decode", "greedy", "beam", "sample")
        return Case(
            path=path,
            length=length,
            batch=batch,
            padding=draw.choice(sides) if padded else "none",
            steps=steps,
            chunk=draw.randint(1, length) if path == "chunked" else 0,
            keep=draw.choice((0, 0, 1, length)) if path == "prefill" else 0,
            attention=draw.choice(self.attentions),
            dtype=draw.choice(dtypes),
            device=draw.choice(self.devices),
            seed=seed,
        )


def _quick(window: int) -> Iterator[Case]:
    """Every path of a served model, at lengths that are multiples of a kernel's block and
    others."""
    for length in _LENGTHS:
        yield Case("prefill", length)
    # All keys and values are compared, but not all logits: over a large vocabulary they would not
    # fit.
    yield Case("prefill", window, keep=max(window // 4, 1))
    yield Case("prefill", 33, keep=1)
    yield Case("prefill", 40, batch=4, padding="right")
    yield Case("decode", 7, steps=8)
    yield Case("decode", 120, steps=4)
    yield Case("decode", 24, batch=4, padding="left", steps=6)
    yield Case("chunked", 40, chunk=16)
    yield Case("static", 17, steps=4)
    yield Case("greedy", 9, steps=12)
    yield Case("greedy", 12, batch=4, padding="left", steps=8)


def _full(window: int) -> Iterator[Case]:
    """What the quick grid leaves out: other batches, caches and decoding, training mode,
    threads."""
    yield Case("prefill", window)
    for batch in (2, 3, 8):
        yield Case("prefill", 33, batch=batch)
        yield Case("prefill", 65, batch=batch, padding="left")
    yield Case("prefill", 64, keep=7)
    yield Case("checkpointing", 48, batch=2)
    yield Case("decode", 30, batch=3, steps=24)
    yield Case("decode", window - 32, steps=32)
    yield Case("chunked", 96, chunk=1)
    yield Case("chunked", 100, batch=2, chunk=33)
    yield Case("static", 24, batch=3, steps=12)
    for threads in (1, 2):
        yield Case("prefill", 256, threads=threads)
        yield Case("decode", 20, steps=8, threads=threads)
    yield Case("greedy", 33, steps=64)
    for path in ("beam", "sample"):
        yield Case(path, 16, steps=24)
        yield Case(path, 12, batch=3, padding="left", steps=12)
    yield Case("assisted", 16, steps=24)


def _fit_window(cases: list[Case], window: int) -> list[Case]:
    """Shortens prompts until they fit the window with their steps. Duplicates are removed, and
    cases that never fit."""
    cut = [replace(case, length=min(case.length, window - case.steps)) for case in cases]
    return list(dict.fromkeys(case for case in cut if case.length > 0))
