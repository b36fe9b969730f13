import random
import subprocess
import sys

import numpy as np
import torch

from otter_cli.core.seeds import derive_seed, seed_everything


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from otter_cli.core.seeds import derive_seed; print(derive_seed('train', 7, 'data'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed("train", 7, "data")


def test_seeds_tell_their_parts_apart() -> None:
    seeds = {derive_seed(*parts) for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c")]}
    assert len(seeds) == 4


def test_seeds_fit_63_bits() -> None:
    seeds = [derive_seed(number) for number in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_every_generator_is_seeded() -> None:
    def draw() -> tuple[float, float, float]:
        seed_everything(derive_seed("draw"))
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    first, second = draw(), draw()
    assert first == second
