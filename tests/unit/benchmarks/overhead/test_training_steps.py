"""What a training step leaves out of the base's last layer, counted by hand."""

import torch

from otter_cli.benchmarks.overhead.measured_models import from_shape
from otter_cli.benchmarks.overhead.measuring import PassShape
from otter_cli.benchmarks.overhead.training_steps import skipped_operations


def test_left_out_are_the_last_output_projection_and_ffn_and_what_is_inserted_there() -> None:
    sizes = {"hidden": 8, "heads": 2, "ffn": 12}
    subject = from_shape("tiny", sizes, dtype=torch.float32, device="cpu")
    d, m, D, heads, units = 64, 160, 8, 2 * 16, 12
    base = d * d + 3 * d * m
    of_base = D * d + 2 * units * d + D * m
    of_stream = D * heads + 2 * units * D + D * units
    # Forward, the gradients of weights, and through W^z those of what it was given.
    inserted = 2 * (of_base + of_stream) + of_stream
    texts, tokens = 4, 10
    left_out = skipped_operations(subject, PassShape(texts, tokens, 0, 4))
    assert left_out == 2 * (base + inserted) * texts * (tokens - 1)
