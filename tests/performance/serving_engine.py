"""One vLLM engine in a process of its own, asked line by line: `tests.performance.serving`.

The first line holds the keywords of LLM; each further one {prompts, sampling} to generate, or
{prompts} for a pooling model to score, or {counters} of what was drafted so far. Answers are lines
too, times of the call alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    # vLLM talks on stdout: what it says goes to stderr, and answers keep the pipe.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from vllm import LLM

    llm: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        if llm is None:
            llm, found = LLM(**asked), {}
        elif "counters" in asked:
            found = {"counters": counters(llm)}
        else:
            found = generate(llm, **asked) if "sampling" in asked else score(llm, **asked)
        answers.write(json.dumps({**found, "seconds": time.perf_counter() - started}) + "\n")


def generate(llm: Any, prompts: list[list[int]], sampling: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt

    wanted = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    outputs = llm.generate(wanted, SamplingParams(**sampling), use_tqdm=False)
    choices = [out.outputs[0] for out in outputs]
    return {
        "tokens": [list(choice.token_ids) for choice in choices],
        "numbers": sum(i >= 1 << 30 for c in choices for step in c.logprobs or () for i in step),
    }


def counters(llm: Any) -> dict[str, Any]:
    prefix = "vllm:spec_decode_"
    return {
        m.name.removeprefix(prefix): m.values if hasattr(m, "values") else m.value
        for m in llm.get_metrics()
        if m.name.startswith(prefix)
    }


def score(llm: Any, prompts: list[list[int]]) -> dict[str, Any]:
    from vllm import TokensPrompt

    wanted = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    outputs = llm.classify(wanted, use_tqdm=False)
    return {"numbers": sum(len(out.outputs.probs) for out in outputs)}


if __name__ == "__main__":
    main()
