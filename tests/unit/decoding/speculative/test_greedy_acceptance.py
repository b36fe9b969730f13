"""Greedy acceptance: the drafts that are their parents' greedy tokens, and no work over the
vocabulary but one argmax for each verified token."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from otter_cli.decoding.sampling import Sampler, Sampling, greedy_tokens
from otter_cli.decoding.speculative.decoder import accept_drafts
from otter_cli.decoding.speculative.drafts import Draft

ROWS, VOCAB = 4, 50


def _sampler() -> Sampler:
    return Sampler(Sampling(), [[1]] * ROWS, torch.device("cpu"))


def _by_definition(logits: Tensor, draft: Draft, row: int) -> tuple[list[int], int]:
    """The accepted drafts of a row in order, and the token after them."""
    node, path = -1, list[int]()
    while True:
        best = max(range(VOCAB), key=lambda token: float(logits[row, node + 1, token]))
        wanted = [
            i
            for i, parent in enumerate(draft.parents)
            if parent == node and draft.valid[row, i] and int(draft.tokens[row, i]) == best
        ]
        if not wanted:
            return path, best
        node = wanted[0]
        path.append(node)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_it_keeps_what_the_definition_keeps(seed: int, dtype: torch.dtype) -> None:
    """Logits of few values, so that many tie: the first of them is the greedy token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    n = seed % 9
    parents = [int(draw(node + 1, 1)) - 1 for node in range(n)]
    logits = draw(5, ROWS, 1 + n, VOCAB).to(dtype)
    best = logits.float().argmax(-1)
    tokens = draw(VOCAB, ROWS, n)
    for node, parent in enumerate(parents):  # three of four drafts are right
        right = draw(4, ROWS) > 0
        tokens[:, node] = torch.where(right, best[:, parent + 1], tokens[:, node])
    draft = Draft(tokens, parents, draw(5, ROWS, n) > 0)
    path, length, following = accept_drafts(logits, draft, _sampler())
    assert path.shape == (ROWS, max(draft.depths, default=0)) and path.dtype == torch.long
    for row in range(ROWS):
        expected, token = _by_definition(logits, draft, row)
        assert path[row, : length[row]].tolist() == expected
        assert int(following[row]) == token


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_greedy_token_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(-3, 4, (200, 97), generator=generator).to(dtype)
    many = torch.randn(200, 97, generator=generator).to(dtype)
    infinite = many.clone()
    infinite[:, 5:9] = -torch.inf
    infinite[::3, 7] = torch.inf
    for logits in (few, many, infinite):
        assert torch.equal(greedy_tokens(logits), logits.argmax(-1))


class _VocabularyWrites(TorchDispatchMode):
    """Counts rows as wide as the vocabulary that operations write."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim and out.shape[-1] == VOCAB and not func.is_view:
            self.rows += out.numel() // VOCAB
        return out


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 0), (torch.bfloat16, 1)], ids=str)
def test_no_draft_copies_logits(dtype: torch.dtype, copies: int) -> None:
    """Half precision is converted once, for the argmax."""
    n = 7
    logits = torch.randn(ROWS, 1 + n, VOCAB).to(dtype)
    draft = Draft.chain(greedy_tokens(logits)[:, :n], torch.full((ROWS,), n))
    with _VocabularyWrites() as written:
        _, length, _ = accept_drafts(logits, draft, _sampler())
    assert length.tolist() == [n] * ROWS
    assert written.rows == copies * ROWS * (1 + n)
