"""The model's own methods call the decoding package and transformers' loop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import Gate, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import FutureDrafter
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8]]
IDS = torch.tensor([[5, 9, 33, 40, 12], [0, 0, 0, 7, 8]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("method") / "g"
    return OtterForCausalLM.from_pretrained(
        random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guide": SignalGuide("reward", 5.0, 4), "gate": Gate(entropy=0.5)},
        {"guide": SignalGuide("reward", 5.0, 4), "drafter": FutureDrafter("future")},
        {"signals": ["reward"], "stops": Stops()},
    ],
    ids=["plain", "guided", "guided and drafted", "read"],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_guided_generation_is_the_decoding_package(
    model: Any, options: dict[str, Any], temperature: float
) -> None:
    sampling = Sampling(12, temperature, ignore_eos=True)
    ours = model.generate_guided(IDS, MASK, sampling=sampling, **options)
    for one, other in zip(ours, generate(model, PROMPTS, sampling, **options), strict=True):
        assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
        assert one.signals == other.signals


def test_generate_is_transformers_own(model: Any) -> None:
    options = {"attention_mask": MASK, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), model.base.generate(IDS, **options))


def test_an_empty_row_is_an_error(model: Any) -> None:
    with pytest.raises(OtterError, match="empty prompt"):
        model.generate_guided(IDS, torch.zeros_like(MASK))
