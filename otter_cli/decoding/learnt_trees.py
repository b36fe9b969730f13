"""The draft tree that suits given prompts, learnt from how often each guess was right on them."""

from __future__ import annotations

from collections.abc import Sequence

from otter_cli.decoding.draft_trees import TreeShape, best_shape, check_nodes, measured_acceptance
from otter_cli.decoding.drafters import future_signal
from otter_cli.decoding.generate import generate
from otter_cli.decoding.types import Sampling
from otter_cli.model import OtterForCausalLM

_RANKS = 8  # guesses of a head beyond these are hardly ever right


def learnt_tree(
    model: OtterForCausalLM,
    signal: str,
    prompts: Sequence[Sequence[int]],
    nodes: int,
    new_tokens: int = 64,
) -> TreeShape:
    """The tree of `nodes` drafts at most, with the longest expected acceptance, measured on what
    the base goes on to write greedily: a plain generation of the prompts, and one pass over each
    text. Raises OtterError where those texts are too short, or the signal predicts no tokens."""
    future_signal(model, signal)
    check_nodes(nodes)
    plain = generate(model, prompts, Sampling(new_tokens))
    texts = [[*p, *row.tokens] for p, row in zip(prompts, plain, strict=True)]
    ranks = min(_RANKS, model.shape.vocab)
    since = [len(prompt) for prompt in prompts]
    return best_shape(measured_acceptance(model, signal, texts, ranks, since=since), nodes)
