"""The drafter that `otter generate` was asked for."""

from __future__ import annotations

from otter_cli.cli.generate_asked import PROMPT_LOOKUP, Asked
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.decoding import DraftModel, FutureDrafter, PromptLookup, TreeShape, learnt_tree
from otter_cli.decoding.drafts import Drafter
from otter_cli.model import OtterForCausalLM, load_base

_LEARNT = "learnt:"
# More of them would take longer than what the better tree saves.
_TEXTS_TO_LEARN_FROM = 8


def drafter_of(asked: Asked, model: OtterForCausalLM, encoded: list[list[int]]) -> Drafter | None:
    """A signal's heads, prompt lookup, or a smaller model from its folder; a tree that is learnt
    is learnt from the prompts. Raises OtterError for a tree that is none."""
    if asked.draft is None:
        return None
    if asked.draft == PROMPT_LOOKUP:
        return PromptLookup()
    if asked.draft_folder is not None:
        return DraftModel(load_base(asked.draft_folder).to(model.device).eval())
    if asked.tree is None:
        return FutureDrafter(asked.draft)
    learnt = asked.tree.startswith(_LEARNT)
    try:
        widths = [int(number) for number in asked.tree.removeprefix(_LEARNT).split(",")]
    except ValueError:
        widths = []
    if not widths or (learnt and len(widths) > 1):
        raise OtterError(
            f"--tree {asked.tree} is neither a list of widths nor a number of tokens to learn",
            hint="such as 3,2,1, or learnt:16",
        )
    if not learnt:
        return FutureDrafter(asked.draft, TreeShape.of_widths(widths))
    texts = encoded[:_TEXTS_TO_LEARN_FROM]
    shape = learnt_tree(model, asked.draft, texts, widths[0], asked.sampling.max_new_tokens)
    say(f"draft tree learnt, texts: {len(texts)}, tree: {shape}")
    return FutureDrafter(asked.draft, shape)
