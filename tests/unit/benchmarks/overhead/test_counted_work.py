"""Counts of operations against what torch counts while it runs, and of bytes by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from otter_cli.benchmarks.overhead import prefill_decode
from otter_cli.benchmarks.overhead.measured_models import BaseWithGraft, from_shape
from otter_cli.benchmarks.overhead.measuring import PassShape, base_work, inserted_work
from otter_cli.signals.config import parse_signal

BATCH, TOKENS = 2, 32


@pytest.fixture(scope="module")
def subject() -> BaseWithGraft:
    sizes = {"signals": (parse_signal("reward"), parse_signal("future:2"))}
    return from_shape("tiny", sizes, dtype=torch.float32, device="cpu")


def in_place_product(z: list[int], x: list[int], w: list[int], **_: object) -> int:
    """Shapes of `z += x w`: torch's own table has the products that write to a new tensor alone."""
    return 2 * x[0] * x[1] * w[1]


def counted(contestant: prefill_decode.Contestant, tokens: torch.Tensor, context: int) -> int:
    cache = contestant.new_cache()
    with torch.no_grad():
        if context:
            contestant.run(torch.ones(len(tokens), context, dtype=torch.long), cache)
        in_place = {torch.ops.aten.addmm_: in_place_product}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            contestant.run(tokens, cache)
    return counter.get_total_flops()


@pytest.mark.parametrize(("tokens", "context"), [(TOKENS, 0), (1, TOKENS)])
def test_operations_are_those_that_torch_runs(
    subject: BaseWithGraft, tokens: int, context: int
) -> None:
    one = PassShape(BATCH, tokens, context, 4)
    text = torch.ones(BATCH, tokens, dtype=torch.long)
    base = base_work(subject.shape, subject.layer_weights, one)
    both = base + inserted_work(subject.plans[0], one)
    heads = subject.shape.heads
    for contestant, work, attending in (
        (prefill_decode.base_contestant(subject.stock), base, heads),
        (
            prefill_decode.graft_contestant(subject.graft),
            both,
            heads + subject.plans[0].config.heads,
        ),
    ):
        # torch does not count a fused attention on a CPU: all the rest is exact.
        attention = 4 * subject.shape.layers * attending * subject.shape.head_dim * one.pairs
        assert counted(contestant, text, context) == work.flops - attention


def test_bytes_of_a_decoding_step_by_hand(subject: BaseWithGraft) -> None:
    shape, config = subject.shape, subject.plans[0].config
    work = base_work(shape, subject.layer_weights, PassShape(1, 1, 9, 4))
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 160)
    head, embedded, cache = 256 * 64, 64, 2 * 2 * 64 * 10
    assert subject.layer_weights == layers
    assert work.bytes == 4 * (layers + head + embedded + cache)
    more = inserted_work(subject.plans[0], PassShape(1, 1, 9, 4))
    table = shape.vocab * config.hidden
    norms = 5 * config.hidden
    cache = 2 * 2 * config.kv_heads * shape.head_dim * 10
    # Of the value, and of the cell's gates and units; its width is twice the base's.
    biases = 1 + 2 * 2 * shape.hidden
    read = subject.plans[0].parameters - table - norms - biases + config.hidden
    assert more.bytes == 4 * (read + cache)


def test_a_twin_shares_weights_and_no_hooks(subject: BaseWithGraft) -> None:
    stock, base = subject.stock, subject.graft.base
    pairs = list(zip(stock.parameters(), base.parameters(), strict=True))
    assert pairs and all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert not any(module._forward_pre_hooks for module in stock.modules())
    # A stock model's weights demand gradients: its output product takes another kernel then.
    assert all(parameter.requires_grad for parameter in stock.parameters())
