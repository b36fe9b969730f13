"""One product of the base's rows with the inserted rows appended, against two products: the times,
and whether the base's part is equal bit for bit. otter runs two products.

    python -m tests.performance.appended_rows --threads 1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

# [width of the input, rows of the base's product, inserted rows], of llama-134m's default graft and
# of a 0.6B shape's: queries, keys and values; gate and up.
PRODUCTS = {
    "134 M, q k v": (768, 3 * 768, 3 * 64),
    "134 M, gate up": (768, 2 * 2048, 2 * 128),
    "0.6 B, q k v": (1024, 4096, 3 * 128),
    "0.6 B, gate up": (1024, 2 * 3072, 2 * 192),
}
TOKENS = (1, 8, 128)
LAYERS = 12  # of weights of their own, so that none of them stays in a cache


def measure(width: int, base: int, inserted: int, tokens: int, rounds: int) -> dict[str, float]:
    """`two_over_one`: time of two products over that of one, the median of paired rounds;
    `equal`: the share of layers in which the base's part of the one product has the bits of its
    own."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width)
    pairs = [(torch.randn(base, width), torch.randn(inserted, width)) for _ in range(LAYERS)]
    wholes = [torch.cat(pair) for pair in pairs]

    def two() -> list[Tensor]:
        return [out for own, other in pairs for out in (linear(x, own), linear(x, other))]

    def one() -> list[Tensor]:
        return [linear(x, whole) for whole in wholes]

    equal = [torch.equal(a, b[:, :base]) for a, b in zip(two()[::2], one(), strict=True)]
    ratios = [_seconds(two) / _seconds(one) for _ in range(rounds)]
    return {"two_over_one": float(np.median(ratios)), "equal": float(np.mean(equal))}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with torch.inference_mode():
        for name, sizes in PRODUCTS.items():
            for tokens in TOKENS:
                found = measure(*sizes, tokens, asked.rounds)
                print(json.dumps({"product": name, "tokens": tokens, **found}))


if __name__ == "__main__":
    main()
