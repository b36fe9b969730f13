"""Learn the draft tree for given prompts from how often each guess of a head is accepted."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.speculative.drafters import future_signal
from otter_cli.decoding.speculative.drafts import TreeShape, check_tree_size
from otter_cli.model.otter import OtterForCausalLM

_MAX_RANKS = 8  # guesses of a head beyond these are hardly ever right


def learn_tree(
    model: OtterForCausalLM,
    signal: str,
    prompts: Sequence[Sequence[int]],
    nodes: int,
    new_tokens: int = 64,
) -> TreeShape:
    """The tree of at most `nodes` drafts with the longest expected acceptance on the base's own
    greedy texts. Costs a plain generation of the prompts, and one pass over each text. Raises
    OtterError where those texts are too short, or the signal predicts no tokens."""
    future_signal(model, signal)
    check_tree_size(nodes)
    plain = generate(model, prompts, Sampling(new_tokens))
    texts = [[*p, *row.tokens] for p, row in zip(prompts, plain, strict=True)]
    ranks = min(_MAX_RANKS, model.shape.vocab)
    since = [len(prompt) for prompt in prompts]
    return best_tree_shape(measure_acceptance(model, signal, texts, ranks, since=since), nodes)


def best_tree_shape(acceptance: Sequence[Sequence[float]], nodes: int) -> TreeShape:
    """The tree of `nodes` drafts with the longest expected acceptance. Guess r of head d is right
    with probability `acceptance[d][r]`, and a path with their product; the best paths are taken
    first. Guesses after one with probability 0 are left out, so that there may be fewer nodes."""
    check_tree_size(nodes)
    paths: list[tuple[int, ...]] = []
    heap: list[tuple[float, tuple[int, ...]]] = [(-acceptance[0][0], (0,))]
    while heap and len(paths) < nodes:
        weight, path = heapq.heappop(heap)
        paths.append(path)
        depth, rank = len(path), path[-1]
        row = acceptance[depth - 1]
        if rank + 1 < len(row) and row[rank] > 0:
            sibling = weight / row[rank] * row[rank + 1]
            heapq.heappush(heap, (sibling, (*path[:-1], rank + 1)))
        if depth < len(acceptance):
            heapq.heappush(heap, (weight * acceptance[depth][0], (*path, 0)))
    return TreeShape(tuple(sorted(paths, key=lambda path: (len(path), path))))


def measure_acceptance(
    model: OtterForCausalLM,
    signal: str,
    texts: Sequence[Sequence[int]],
    ranks: int,
    *,
    since: Sequence[int] | None = None,
) -> list[list[float]]:
    """How often guess r of head d is the text's own token, [heads][ranks]. Tokens are counted from
    index `since` of each text on (default: 1). On greedy texts of the base these are the rates of
    acceptance."""
    heads = model.signal_configs[signal].size
    hits, counts = torch.zeros(heads, ranks), torch.zeros(heads, 1)
    for text, start in zip(texts, since or [1] * len(texts), strict=True):
        tokens = torch.tensor([list(text)], device=model.device)
        logits = _future_logits(model, signal, tokens, heads)
        for head in range(min(heads, len(text) - 2)):
            # The state before the first new token guesses the tokens after it.
            best = logits[start - 1 : len(text) - 2 - head, head].topk(ranks, -1).indices
            hits[head] += (best == tokens[0, start + 1 + head :, None]).sum(0).cpu()
            counts[head] += len(best)
    if not bool(counts.min()):
        raise OtterError(
            "no text to measure acceptance on", hint=f"texts of more than {heads + 1} tokens"
        )
    rates = (hits / counts).tolist()
    # A guess is tried where the better ones failed, so that rates must not rise with the rank.
    return [[min(row[: r + 1], default=math.nan) for r in range(ranks)] for row in rates]


def _future_logits(model: OtterForCausalLM, signal: str, tokens: Tensor, heads: int) -> Tensor:
    """Logits [n, heads, vocab] at each of `tokens` [1, n]. A cell is given the text's own tokens as
    the drafts so far: after a wrong draft nothing counts."""
    following = torch.nn.functional.pad(tokens[0, 1:], (0, heads)).unfold(0, heads, 1)
    with torch.no_grad():
        out = model(tokens, signals=(), logits=False)
        v = {name: states[0] for name, states in out.inserted_state.items()}
        return model.read_signal(signal, out.base_state[0], v, following)
