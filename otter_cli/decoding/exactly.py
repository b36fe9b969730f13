"""Greedy text that is plain decoding's by construction: near-ties are decided by steps of one
token, in a session of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from otter_cli.decoding.near_ties import bound
from otter_cli.decoding.session import DecodingSession
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
