"""The signals after the last token of an answer, from one more step of the engine."""

from __future__ import annotations

import uuid
from typing import Any

from otter_cli.serving.vllm.answers import Row
from otter_cli.serving.vllm.requests import FIRST_VIRTUAL_ID
from otter_cli.serving.vllm.translation import AnswerPlan


class LastRowReader:
    """Reads the numbers after a whole text, by a step of the engine over its last token. The
    engine's prefix cache has what comes before, up to a block. A text that fills the model's
    context has no next step, and no numbers."""

    def __init__(self, engine: Any, plan: AnswerPlan) -> None:
        self.engine, self.plan = engine, plan

    async def __call__(self, tokens: list[int]) -> Row:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        if len(tokens) >= self.engine.model_config.max_model_len:
            return {}
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=self.plan.outputs,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"otter_signals": list(self.plan.travelling), "otter_logprobs": False},
        )
        prompt = tokens_input(tokens, cache_salt=self.plan.cache_salt)
        name, row = f"otter-last-{uuid.uuid4().hex}", dict[int, float | None]()
        async for output in self.engine.generate(prompt, sampling, name):
            for id, entry in output.outputs[0].logprobs[0].items():
                if id >= FIRST_VIRTUAL_ID:
                    row[id - FIRST_VIRTUAL_ID] = entry.logprob
        return row
