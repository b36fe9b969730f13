"""Near-ties by steps of one token, in a session of their own: decided by them, so that greedy text
is plain decoding's by construction, or reported beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from otter_cli.decoding.near_ties import bound
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.types import Generation
from otter_cli.model import OtterForCausalLM


class OneTokenSteps:
    """Plain decoding of one prompt, which follows the text only as far as it is asked."""

    def __init__(self, model: OtterForCausalLM, prompt: list[int]) -> None:
        self.model, self.prompt = model, prompt
        self.fed: list[int] = []
        self.session = DecodingSession(model, stream=False, windows="cached")

    @property
    def passes(self) -> int:
        return self.session.passes

    def choice(self, text: list[int]) -> int:
        """The token after a text that begins with the prompt and goes on from the last one."""
        if not self.fed:
            self.state, self.fed = self.session.prefill([self.prompt]), list(self.prompt)
        for token in text[len(self.fed) :]:
            self.state = self.session.step(torch.tensor([token], device=self.session.device))
        self.fed = list(text)
        return int(self.session.logits(self.state)[0, 0].argmax())

    def settle(
        self, text: list[int], logits: Tensor, path: list[int], following: int
    ) -> tuple[int, int]:
        """How many drafts of the accepted `path` (tokens) stay after `text`, and the token after
        them, by logits [1 + path, vocab] at the text's last token and along the path."""
        top = logits.topk(2, -1).values.double()
        tied = (top[:, 0] - top[:, 1] < bound(logits)).tolist()
        chosen = [*path, following]
        for place, token in enumerate(chosen):
            if tied[place] and (exact := self.choice([*text, *path[:place]])) != token:
                return place, exact
        return len(path), following


def both_paths(model: OtterForCausalLM, prompt: Sequence[int], generation: Generation) -> None:
    """Notes at each near-tie of a generation what a step of one token chooses after the same text.
    Costs a prefill and a pass for each token up to the last of them; without any, nothing."""
    if not generation.near_ties:
        return
    single = OneTokenSteps(model, list(prompt))
    generation.near_ties = [
        replace(tie, one_token=single.choice([*prompt, *generation.tokens[: tie.position]]))
        for tie in generation.near_ties
    ]
    generation.counters.rescoring_passes += single.passes
