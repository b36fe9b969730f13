"""Drafts of a cell: each node of a tree comes after the tokens on its own path, and nothing is
lost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.speculative.drafters import FutureDrafter
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8]]
PENDING = [3, 77]
UNEVEN = TreeShape(((0,), (1,), (2,), (0, 0), (0, 1), (2, 0), (0, 1, 0), (2, 0, 0), (2, 0, 1)))


@pytest.fixture(scope="module", params=[8, 0], ids=["insertion", "on the base alone"])
def model(request: Any, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("g") / "g"
    sizes = {"hidden": request.param, "heads": 2, "ffn": 16, "scale": 0.2}
    folder = random_graft(tiny_llama, out, signals=("future:3,24",), **sizes)
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("tree", [None, TreeShape.of_widths([3, 2, 2]), UNEVEN], ids=str)
def test_each_draft_comes_after_its_own_path(model: Any, tree: TreeShape | None) -> None:
    session = DecodingSession(model)
    state = session.prefill(PROMPTS)
    texts = [[*prompt, token] for prompt, token in zip(PROMPTS, PENDING, strict=True)]
    draft = FutureDrafter(tree=tree).start(session).draft(state, texts)
    shape = tree or TreeShape.of_widths([1, 1, 1])
    assert draft.parents == shape.parents and bool(draft.valid.all())
    branched = set()
    for row, pending in enumerate(PENDING):
        y = state.base[row, 0]
        v = {name: states[row, 0] for name, states in state.inserted.items()}
        tokens: dict[tuple[int, ...], int] = {}
        for node, path in enumerate(shape.paths):
            before = [pending, *(tokens[path[: i + 1]] for i in range(len(path) - 1))]
            said = model.read_signal("future", y, v, torch.tensor(before))[len(path) - 1]
            tokens[path] = int(said.argsort(descending=True)[path[-1]])
            assert int(draft.tokens[row, node]) == tokens[path]
        branched |= {tokens[path] for path in shape.paths if len(path) == 2}
    if tree is not None:
        assert len(branched) > 2  # guesses after different drafts differ


def test_drafted_text_is_plain_text(model: Any) -> None:
    greedy = Sampling(16, ignore_eos=True)
    plain = generate(model, PROMPTS, greedy)
    for tree in (None, UNEVEN):
        drafted = generate(model, PROMPTS, greedy, drafter=FutureDrafter(tree=tree))
        assert [row.tokens for row in drafted] == [row.tokens for row in plain]
        assert drafted[0].counters.drafted[0] > 0
