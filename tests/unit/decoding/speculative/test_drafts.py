"""Draft trees are lossless: the distribution token by token, and greedy text; guided too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import SignalBound, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.learned_trees import (
    best_tree_shape,
    learn_tree,
    measure_acceptance,
)
from otter_cli.decoding.sampling import Sampler, Sampling
from otter_cli.decoding.speculative.decoder import accept_drafts
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import Draft, TreeShape
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]
GREEDY = Sampling(max_new_tokens=14, ignore_eos=True)
DRAWS = 200_000
TREE = TreeShape.of_widths([2, 2])


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out, signals = tmp_path_factory.mktemp("g") / "g", ("reward", "future:2", "action-reward")
    sizes = {"hidden": 8, "heads": 2, "ffn": 16, "scale": 0.2}
    folder = random_graft(tiny_llama, out, signals=signals, **sizes)
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


def _bulk_sampler(temperature: float = 1.0) -> Sampler:
    """One generator for all rows: independent numbers, drawn at once."""
    sampler = Sampler(Sampling(temperature=temperature), [[1]], torch.device("cpu"))
    generator = torch.Generator().manual_seed(9)

    def numbers(rows: Tensor | None = None) -> Tensor:
        return torch.rand(DRAWS, generator=generator, dtype=torch.float64)

    sampler.uniform_per_row = numbers  # type: ignore[method-assign]
    return sampler


def _variation(tokens: Tensor, expected: Tensor) -> float:
    got = torch.bincount(tokens, minlength=len(expected)) / len(tokens)
    return float(0.5 * (got - expected).abs().sum())


@pytest.mark.parametrize(
    ("tokens", "paths"),
    [
        ([1, 4], ((0,), (0, 0))),
        ([0, 0], ((0,), (0, 0))),
        ([3, 1, 2, 0, 4], ((0,), (1,), (0, 0), (0, 1), (1, 0))),
        ([0, 1, 2, 3, 4, 0, 1], ((0,), (1,), (2,), (3,), (4,), (0, 0), (4, 0))),
    ],
    ids=["chain", "chain of one token", "tree", "every token and more"],
)
def test_sampling_over_a_tree_keeps_the_joint_distribution(
    tokens: list[int], paths: tuple[tuple[int, ...], ...]
) -> None:
    """200,000 draws on five tokens: the first token, and the second given each accepted first."""
    torch.manual_seed(0)
    shape, nodes = TreeShape(paths), len(tokens)
    logits = torch.randn(1, 1 + nodes, 5).expand(DRAWS, -1, -1)
    drafts = torch.tensor(tokens).expand(DRAWS, -1)
    draft = Draft(drafts, shape.parents, torch.ones_like(drafts, dtype=torch.bool))
    path, kept, following = accept_drafts(logits, draft, _bulk_sampler())
    first = torch.where(kept > 0, drafts.gather(1, path[:, :1])[:, 0], following)
    assert _variation(first, logits[0, 0].double().softmax(-1)) < 0.005
    for node in range(nodes):
        if shape.parents[node] >= 0:
            continue
        through = (kept > 0) & (path[:, 0] == node)
        deeper = drafts[through].gather(1, path[through][:, 1:2])[:, 0]
        second = torch.where(kept[through] > 1, deeper, following[through])
        expected = logits[0, 1 + node].double().softmax(-1)
        # Five cells: the expected distance is below sqrt(5 / n) / 2.
        assert _variation(second, expected) < 1.5 * (5 / max(1, len(second))) ** 0.5
    assert bool((kept > 1).any())


def test_typical_acceptance_is_medusa_s_rule_and_loses(model: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 5).expand(DRAWS, -1, -1)
    p = logits[0, 0].double().softmax(-1)
    bound = min(0.09, 0.3 * float(torch.exp((p * p.log()).sum())))
    for token in range(5):
        drafts = torch.full((DRAWS, 1), token)
        draft = Draft.chain(drafts, torch.ones(DRAWS, dtype=torch.long))
        _, kept, _ = accept_drafts(logits, draft, _bulk_sampler(), "typical")
        assert bool((kept == int(p[token] > bound)).all())


def test_a_row_without_drafts_is_left_to_itself(model: Any) -> None:
    logits = torch.randn(2, 3, 5)
    draft = Draft.chain(logits[:, :2].argmax(-1), torch.tensor([2, 0]))
    path, kept, following = accept_drafts(
        logits, draft, Sampler(GREEDY, [[1]] * 2, torch.device("cpu"))
    )
    assert kept.tolist() == [2, 0] and path.tolist() == [[0, 1], [0, 0]]
    assert following.tolist() == [int(logits[0, 2].argmax()), int(logits[1, 0].argmax())]


def test_a_draft_model_that_is_the_base_is_always_right(model: Any) -> None:
    plain = generate(model, PROMPTS, GREEDY)
    drafted = generate(model, PROMPTS, GREEDY, drafter=DraftModel(model.base, 3))
    assert [row.tokens for row in drafted] == [row.tokens for row in plain]
    assert drafted[0].counters.accepted == drafted[0].counters.drafted
    assert drafted[0].counters.base_passes < 6
    assert drafted[0].counters.external_passes > 0


@pytest.mark.parametrize(
    "guide",
    [VocabularyGuide("action-reward", 2.0, 5), SignalGuide("reward", 2.0, 4)],
    ids=["action values", "values"],
)
@pytest.mark.parametrize("drafter", [FutureDrafter(tree=TREE), PromptLookup(2, 3)], ids=str)
def test_guided_and_drafted_is_guided(model: Any, guide: Any, drafter: Any) -> None:
    guided = generate(model, PROMPTS, GREEDY, guide=guide)
    both = generate(model, PROMPTS, GREEDY, guide=guide, drafter=drafter)
    assert [row.tokens for row in both] == [row.tokens for row in guided]
    assert [row.tokens for row in both] != [row.tokens for row in generate(model, PROMPTS, GREEDY)]


def test_signals_of_an_accepted_path_are_the_text_s(model: Any) -> None:
    plain, drafted = (
        generate(model, PROMPTS, GREEDY, drafter=drafter, signals=("reward",))
        for drafter in (None, DraftModel(model.base, 3))
    )
    for ours, theirs in zip(drafted, plain, strict=True):
        torch.testing.assert_close(ours.signals, theirs.signals, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=1e-4, atol=1e-5)


def test_the_best_tree_has_the_longest_expected_path() -> None:
    from itertools import combinations, product
    from math import prod

    acceptance = [[0.5, 0.3, 0.1], [0.4, 0.2, 0.1]]
    paths = [p for d in (1, 2) for p in product(range(3), repeat=d)]

    def worth(chosen: tuple[tuple[int, ...], ...]) -> float:
        whole = all(path[:-1] in chosen or len(path) == 1 for path in chosen)
        gains = (prod(acceptance[d][r] for d, r in enumerate(path)) for path in chosen)
        return sum(gains) if whole else 0.0

    for nodes in (1, 3, 5):
        best = max(worth(chosen) for chosen in combinations(paths, nodes))
        assert worth(best_tree_shape(acceptance, nodes).paths) == pytest.approx(best)


def test_acceptance_is_measured_at_the_right_distance(model: Any) -> None:
    text = generate(model, PROMPTS[:1], GREEDY)[0].tokens
    with torch.no_grad():
        # Drafts before a draft are the text's own, or it is not reached.
        out, ids = model(torch.tensor([text])), torch.tensor(text)
        following = torch.stack([ids.roll(-1), ids.roll(-2)], -1)[None]
        said = model.read_signal("future", out.base_state, out.inserted_state, following)
        guesses = said[0].argsort(-1, descending=True)
    expected = []
    for head in range(2):
        places = range(len(text) - 2 - head)
        right = sum(int(guesses[t, head, 0]) == text[t + 2 + head] for t in places)
        expected.append(right / len(places))
    got = measure_acceptance(model, "future", [text], 3)
    assert [row[0] for row in got] == pytest.approx(expected)
    assert all(row == sorted(row, reverse=True) for row in got)


def test_acceptance_counts_what_was_written_after_the_prompt(model: Any) -> None:
    (row,) = generate(model, PROMPTS[:1], GREEDY)
    text, start = [*PROMPTS[0], *row.tokens], len(PROMPTS[0])
    with torch.no_grad():
        guesses = model(torch.tensor([text])).signals["future"][0].argmax(-1)
    places = range(start - 1, len(text) - 2)
    right = sum(int(guesses[t, 0]) == text[t + 2] for t in places) / len(places)
    got = measure_acceptance(model, "future", [text], 3, since=[start])
    assert got[0][0] == pytest.approx(right)
    shape = learn_tree(model, "future", PROMPTS, 5, new_tokens=GREEDY.max_new_tokens)
    # Guesses that were never right are left out.
    assert 1 <= len(shape.paths) <= 5 and shape.depth <= 2 and shape.paths[0] == (0,)


@pytest.mark.parametrize("drafter", [None, PromptLookup(2, 3)], ids=str)
def test_a_stop_string_and_a_signal_end_a_row(
    model: Any, drafter: Any, tiny_tokenizer: Any
) -> None:
    plain = generate(model, PROMPTS, GREEDY, signals=("reward",))
    ending = tiny_tokenizer.decode(plain[0].tokens[4:6])
    stops = Stops(strings=(ending,), tokenizer=tiny_tokenizer)
    stopped = generate(model, PROMPTS, GREEDY, stops=stops, drafter=drafter)[0]
    assert stopped.finish == "stop" and repr(ending) in stopped.message
    assert tiny_tokenizer.decode(stopped.tokens).endswith(ending)
    assert stopped.tokens == plain[0].tokens[: len(stopped.tokens)]
    highest = max(plain[1].signals["reward"])
    bound = SignalBound("reward", highest - 1e-3)
    rejected = generate(model, PROMPTS, GREEDY, stops=Stops(signals=(bound,)), drafter=drafter)[1]
    last = plain[1].signals["reward"].index(highest)
    assert rejected.finish == "rejected" and rejected.tokens == plain[1].tokens[: last + 1]
    assert rejected.message.startswith("reward>")


def test_what_cannot_be_drafted(model: Any, tiny_checkpoint: Any) -> None:
    from transformers import AutoModelForCausalLM

    from otter_cli.decoding.guides.external_models import GenArmGuide

    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama", vocab_size=101))
    for options, words in (
        ({"drafter": DraftModel(other)}, "101 tokens"),
        ({"drafter": FutureDrafter(tree=TreeShape.of_widths([1, 1, 1]))}, "depth 3"),
        ({"drafter": FutureDrafter(tree=TreeShape.of_widths([98, 1]))}, "vocabulary has 97"),
        ({"drafter": PromptLookup(), "guide": GenArmGuide(model.base, 1.0)}, "follows one text"),
    ):
        with pytest.raises(OtterError, match=words):
            generate(model, PROMPTS, GREEDY, **options)
    with pytest.raises(OtterError, match="widths"):
        TreeShape.of_widths([2, 0])


@pytest.mark.parametrize("widths", [[999, 999], [10**9], [2] * 40, [1025]])
def test_a_tree_that_no_pass_can_verify_is_refused_before_it_is_built(widths: list[int]) -> None:
    with pytest.raises(OtterError, match="[0-9,]+ tokens is too large"):
        TreeShape.of_widths(widths)
    with pytest.raises(OtterError, match="too large"):
        best_tree_shape([[0.5] * 3] * 2, sum(widths) ** 2)
    assert len(TreeShape.of_widths([1024]).paths) == 1024


@pytest.mark.parametrize("drafter", [FutureDrafter(tree=TREE), PromptLookup(2, 3)], ids=str)
def test_near_ties_are_decided_as_plain_decoding_does(
    model: Any, monkeypatch: pytest.MonkeyPatch, drafter: Any
) -> None:
    """Every choice counts as a near-tie, and every step of many tokens gives a wrong token."""
    import otter_cli.decoding.speculative.decoder as decoder
    from otter_cli.decoding.session import DecodingSession

    plain = [generate(model, [prompt], GREEDY)[0] for prompt in PROMPTS]
    read = DecodingSession.logits

    def wrong(self: DecodingSession, state: Any) -> Tensor:
        logits = read(self, state)
        return logits if logits.shape[1] == 1 else logits.roll(1, -1)

    monkeypatch.setattr(
        decoder, "near_tie_gap", lambda logits: torch.full(logits.shape[:-1], torch.inf)
    )
    monkeypatch.setattr(DecodingSession, "logits", wrong)
    for prompt, row in zip(PROMPTS, plain, strict=True):
        (exact,) = generate(model, [prompt], GREEDY, drafter=drafter, exact=True)
        assert exact.tokens == row.tokens and exact.counters.rescoring_passes > 0
    with pytest.raises(OtterError, match="one prompt"):
        generate(model, PROMPTS, GREEDY, drafter=drafter, exact=True)
