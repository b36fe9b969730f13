"""What a guided step costs, by counts that are the same on every run: rows that are multiplied with
the vocabulary, bytes that are copied out of the KV cache, and kernel calls."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.accel.native_library import load_native
from otter_cli.benchmarks.overhead.counted_calls import CountedCalls
from otter_cli.decoding.guides.guide import Guide, GuidedSelector
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.sampling import Sampler, Sampling, UnguidedSelector
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPT = [5, 9, 33, 40, 12, 60, 61]
NEW_TOKENS = 5  # within the spare slots that the prefill's cache has behind its content
FORMS: list[dict[str, Any]] = [{"heads": 2}, {"heads": 2, "kv": "base"}, {"hidden": 0}]
VALUE, ACTIONS = SignalGuide("reward", 1.0, 10), VocabularyGuide("actions", 1.0, 10)


@pytest.fixture(params=FORMS, ids=str, scope="module")
def model(tiny_llama: Path, tmp_path_factory: Any, request: pytest.FixtureRequest) -> Any:
    options = {"hidden": 8, "ffn": 16, "signals": ("reward", "actions=action-reward")}
    out = tmp_path_factory.mktemp("g") / "g"
    return OtterForCausalLM.from_pretrained(
        random_graft(tiny_llama, out, **{**options, **request.param})
    )


class Step:
    """Guided steps of one text, each of which is counted by itself."""

    def __init__(self, model: Any, guide: Guide | None, rows: int = 1) -> None:
        prompts = [PROMPT for _ in range(rows)]
        self.model, self.session = model, DecodingSession(model, stream=guide is not None)
        self.selector = (
            UnguidedSelector()
            if guide is None
            else GuidedSelector([guide], None, self.session, rows)
        )
        self.sampler = Sampler(Sampling(NEW_TOKENS), prompts, self.session.device)
        self.state = self.session.prefill(prompts)
        self.run()  # packs weights and enlarges the cache once

    def run(self) -> None:
        logits = self.session.logits(self.state)[:, 0]
        tokens, state = self.selector.choose(self.state, logits, self.sampler)
        self.state = self.session.step(tokens) if state is None else state

    def counted(self) -> CountedCalls:
        head = self.model.base.get_output_embeddings().weight
        with torch.no_grad(), CountedCalls(head, self.session.cache) as counts:
            self.run()
        return counts


def _entry_bytes(session: DecodingSession) -> int:
    """Keys and values of one slot, in the base's layers and the insertion's."""
    layers = [layer for layer in session.cache.layers if layer.is_initialized]
    return sum(2 * 4 * layer.keys.shape[1] * layer.keys.shape[3] for layer in layers)


@pytest.mark.parametrize("guide", [None, VALUE, ACTIONS], ids=["plain", "V-style", "Q-style"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_is_one_row_of_the_vocabulary_product(
    model: Any, guide: Guide | None, rows: int
) -> None:
    """No candidate has logits. Those of the winner give the next candidates."""
    step = Step(model, guide, rows)
    for _ in range(NEW_TOKENS):
        assert step.counted().vocabulary_rows == rows


@pytest.mark.parametrize("rows", [1, 3])
def test_no_candidate_copies_the_cache(model: Any, rows: int) -> None:
    """All share the prefix. At most the winner's own entry moves, into the slot after the text."""
    step, copied = Step(model, VALUE, rows), set()
    for _ in range(NEW_TOKENS):
        copied.add(step.counted().copied_bytes)
    assert copied <= {0, rows * _entry_bytes(step.session)} and len(copied) == 2
    assert step.session.width == len(PROMPT) + NEW_TOKENS + 1


@pytest.mark.parametrize("guide", [None, ACTIONS], ids=["plain", "Q-style"])
def test_a_step_of_one_token_copies_nothing_of_the_cache(model: Any, guide: Guide | None) -> None:
    step = Step(model, guide)
    assert [step.counted().copied_bytes for _ in range(NEW_TOKENS)] == [0] * NEW_TOKENS


def test_a_growing_cache_copies_at_most_eight_slots_a_token(model: Any) -> None:
    """It is copied as a whole when its spare slots are used up: an eighth of it, or 16 slots."""
    step, tokens = Step(model, VALUE), 100
    copied = sum(step.counted().copied_bytes for _ in range(tokens))
    # And one slot for the winner's entry.
    assert 0 < copied <= (8 + 1) * tokens * _entry_bytes(step.session)


def test_a_chain_of_drafts_copies_nothing_of_the_cache(model: Any) -> None:
    session = DecodingSession(model)
    session.prefill([PROMPT])
    session.step(torch.tensor([3]))
    head = model.base.get_output_embeddings().weight
    with torch.no_grad(), CountedCalls(head, session.cache) as counts:
        session.logits(session.extend(torch.tensor([[4, 5, 6, 7]])))
        session.keep(torch.tensor([2]))
    assert (counts.copied_bytes, counts.vocabulary_rows) == (0, 4)


def _calls_of_candidates(model: Any, count: int) -> int:
    """Kernel calls of a step of candidates whose first wins, with the winner's logits."""
    session = DecodingSession(model)
    session.prefill([PROMPT])
    head = model.base.get_output_embeddings().weight
    for _ in range(2):  # the first packs weights
        with CountedCalls(head, session.cache) as counts, torch.no_grad():
            states = session.extend_candidates(torch.arange(count)[None] + 3)
            session.read("reward", states)
            session.keep_candidate(torch.tensor([0]))
            session.logits(states.select(torch.tensor([0])))
    return counts.kernel_calls


def test_the_number_of_candidates_adds_no_kernel_call(model: Any) -> None:
    assert len({_calls_of_candidates(model, count) for count in (2, 10, 30)}) == 1


@pytest.mark.skipif(load_native() is None, reason="no compiler here")
def test_a_step_of_candidates_has_the_kernel_calls_of_a_plain_step(model: Any) -> None:
    """And a few for the mask, the stream as a whole, and the signal; none for each layer."""
    plain = Step(model, None).counted().kernel_calls
    assert plain < _calls_of_candidates(model, 10) <= plain + 16


def test_a_copy_of_the_cache_is_counted(model: Any) -> None:
    """Else the tests above could not fail."""
    session = DecodingSession(model, stream=False)
    session.prefill([PROMPT])
    keys = session.cache.layers[0].keys
    size = keys.numel() * 4
    head = model.base.get_output_embeddings().weight
    for copy, expected in (
        (lambda: keys.clone(), size),
        (lambda: torch.cat([keys, torch.zeros(1, 2, 1, 8)], 2), size),
        (lambda: keys.repeat_interleave(2, 1), 2 * size),
        (lambda: keys.expand(10, -1, -1, -1).contiguous(), 10 * size),
        (lambda: keys[:, :, [1]], size // len(PROMPT)),
        (lambda: keys[:, :, 1:2].copy_(keys[:, :, 0:1]), size // len(PROMPT)),
        (lambda: keys[:, :, 1:2].zero_(), 0),
        (lambda: keys.transpose(1, 2)[:, 1:], 0),
    ):
        with CountedCalls(head, session.cache) as counts:
            copy()
        assert counts.copied_bytes == expected
