"""Guided drafts at a temperature follow the guided distribution exactly."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPT, K, DRAWS, BATCH = [5, 9, 3, 4, 8], 3, 6000, 1500
# Flat enough that most texts of three tokens occur.
TEMPERATURE, STRENGTHS = 3.0, {"reward": 6.0, "action-reward": 1.0}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tiny_checkpoint("llama", vocab_size=11, num_hidden_layers=2)
    folder: Path = random_graft(
        base,
        tmp_path_factory.mktemp("guided") / "g",
        signals=("reward", "future:2", "action-reward"),
        hidden=8,
        heads=2,
        ffn=16,
        scale=0.3,
    )
    return OtterForCausalLM.from_pretrained(folder)


def _next(model: Any, text: list[int], strength: float, guide: str) -> dict[int, float]:
    """The guided distribution after a text, by plain forwards: no cache, no drafts."""
    with torch.no_grad():
        out = model(torch.tensor([text]))
        best = out.logits[0, -1].topk(K)
        if guide == "action-reward":
            scores = out.signals[guide][0, -1, best.indices]
        else:
            texts = torch.tensor([[*text, int(token)] for token in best.indices])
            scores = model(texts).signals[guide][:, -1]
    p = ((best.values + strength * scores).double() / TEMPERATURE).softmax(-1)
    return dict(zip(best.indices.tolist(), p.tolist(), strict=True))


def _joint(model: Any, strength: float, guide: str) -> dict[tuple[int, ...], float]:
    """Of three tokens after the prompt."""
    found = {(): 1.0}
    for _ in range(3):
        found = {
            (*text, token): p * q
            for text, p in found.items()
            for token, q in _next(model, [*PROMPT, *text], strength, guide).items()
        }
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "action-reward"])
@pytest.mark.parametrize("drafter", ["heads as a tree", "the base itself"])
def test_the_guided_distribution_is_kept(model: Any, name: str, drafter: str) -> None:
    """A chi-square test over all texts of three tokens; the base's own distribution fails it."""
    guide = (VocabularyGuide if name == "action-reward" else SignalGuide)(name, STRENGTHS[name], K)
    drafts = {
        "heads as a tree": FutureDrafter(tree=TreeShape.of_widths([3, 2])),
        "the base itself": DraftModel(model.base, 2),
    }[drafter]
    seen: Counter[tuple[int, ...]] = Counter()
    kept = 0
    for seed in range(DRAWS // BATCH):
        sampling = Sampling(3, temperature=TEMPERATURE, seed=seed, ignore_eos=True)
        rows = generate(model, [PROMPT] * BATCH, sampling, guide=guide, drafter=drafts)
        seen.update(tuple(row.tokens) for row in rows)
        kept += sum(sum(row.counters.accepted) for row in rows)
    guided, plain = _joint(model, STRENGTHS[name], name), _joint(model, 0.0, name)
    assert seen.keys() <= guided.keys() and kept > DRAWS / 20
    assert _fit(seen, guided) > 1e-4
    assert _fit(seen, plain) < 1e-9


def _fit(seen: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """p of the counts; texts that are expected fewer than ten times count as one."""
    common = [text for text, p in expected.items() if p * DRAWS >= 10]
    counts = [seen[text] for text in common]
    means = [expected[text] * DRAWS for text in common]
    rest = DRAWS - sum(means)
    if rest > 10:
        counts, means = [*counts, DRAWS - sum(counts)], [*means, rest]
    else:
        means = [mean * sum(counts) / sum(means) for mean in means]
    return float(chisquare(counts, means).pvalue)
