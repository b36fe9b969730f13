"""Which part of a score guides: what a token is worth wherever it stands, or what it is worth here.

    python -m tests.performance.score_parts TO --prompts FILE --contexts FILE --detoxify DIR
        --strength -16 --score NAME=FOLDER=SIGNAL ...

What a token adds to a score is split into its mean over many contexts, a lexicon of one number a
token, and the rest. Texts are written under guides by the whole, by the lexicon and by the rest.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from otter_cli.benchmarks.options import PromptFile
from otter_cli.benchmarks.prompts import load_prompts
from otter_cli.core.atomic import write_json
from otter_cli.core.intervals import interval, mean
from otter_cli.core.provenance import provenance
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.guide import CandidateScorer, Guide
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession, signal_scores
from otter_cli.model.load import load_tokenizer
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.scorers.detoxify import DetoxifyScorer
from otter_cli.scorers.scorer import Exchange, score_all

CONTEXTS, CHUNK, CANDIDATES, SAMPLES, TOGETHER, NEW = 48, 512, 20, 4, 16, 20


@dataclass(frozen=True, eq=False)
class LexiconGuide(Guide):
    """By one number a token: no signal is read."""

    lexicon: Tensor
    strength: float
    candidates: int = CANDIDATES
    name: ClassVar[str] = "lexicon"
    paper: ClassVar[str] = ""

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        return _Lexicon(self.lexicon)


class _Lexicon(CandidateScorer):
    def __init__(self, lexicon: Tensor) -> None:
        self.lexicon = lexicon

    def scores(self, state: Any, fed: Any, tokens: Tensor | None) -> Tensor:
        return self.lexicon if tokens is None else self.lexicon[tokens]


@dataclass(frozen=True, eq=False)
class RestGuide(Guide):
    """By what is left of a value without the lexicon."""

    whole: SignalGuide
    lexicon: Tensor
    strength: float
    candidates: int = CANDIDATES
    name: ClassVar[str] = "rest"
    paper: ClassVar[str] = ""
    needs_stream: ClassVar[bool] = True

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        return _Rest(self.whole.scorer(session), self.lexicon)


class _Rest(CandidateScorer):
    needs_candidate_states = True

    def __init__(self, whole: CandidateScorer, lexicon: Tensor) -> None:
        self.whole, self.lexicon = whole, lexicon

    def scores(self, state: Any, fed: Any, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        return self.whole.scores(state, fed, tokens) - self.lexicon[tokens]


@torch.no_grad()
def added(model: Any, signal: str, prompt: list[int], tokens: Tensor | None) -> tuple[Any, Any]:
    """Tokens (by default the likeliest) after `prompt`, and what each adds to the score."""
    session = DecodingSession(model)
    state = session.prefill([prompt])
    so_far = signal_scores(session, signal, state)[0, -1, 0]
    if tokens is None:
        tokens = session.logits(state)[0, -1].topk(CANDIDATES).indices
    found = []
    for some in tokens.split(CHUNK):
        fed = session.extend_candidates(some[None])
        found.append(signal_scores(session, signal, fed)[0, :, 0] - so_far)
        session.keep_candidate(torch.tensor([0]))
        session.crop(torch.tensor([1]))
    return tokens, torch.cat(found)


def lexicon_of(model: Any, signal: str, contexts: list[list[int]], ends: int) -> Tensor:
    """[vocab]. Ending a text adds nothing."""
    every = torch.arange(model.shape.vocab)
    mean_of = torch.stack([added(model, signal, one, every)[1] for one in contexts]).mean(0)
    mean_of[ends] = 0
    return mean_of


def explained(model: Any, signal: str, prompts: list[list[int]], lexicon: Tensor) -> dict[str, Any]:
    """Of the differences among the likeliest tokens of a context: their standard deviation, and the
    share of their variance that the lexicon has."""
    whole, rest = [], []
    for prompt in prompts:
        tokens, adds = added(model, signal, prompt, None)
        left = adds - lexicon[tokens]
        whole.append(float((adds - adds.mean()).square().mean()))
        rest.append(float((left - left.mean()).square().mean()))
    share = 1 - np.mean(rest) / np.mean(whole)
    return {"deviation": float(np.mean(whole) ** 0.5), "share_of_lexicon": float(share)}


def written(model: Any, prompts: list[Any], guide: Guide | None) -> list[tuple[Any, Any]]:
    sampling = Sampling(NEW, 1.0, top_k=CANDIDATES, top_p=0.9)
    found = []
    for start in range(0, len(prompts), TOGETHER):
        some = [prompt for prompt in prompts[start : start + TOGETHER] for _ in range(SAMPLES)]
        rows = generate(model, [list(one.tokens) for one in some], sampling, guide=guide)
        found += list(zip(some, rows, strict=True))
    return found


def judged(texts: list[tuple[Any, Any]], tokenizer: Any, judge: DetoxifyScorer) -> dict[str, Any]:
    """Expected maximum toxicity, perplexity under the base and mean length."""
    exchanges = [
        Exchange(one.name, one.text, tokenizer.decode(row.tokens, skip_special_tokens=True))
        for one, row in texts
    ]
    toxicity = np.array(score_all(judge, exchanges, lambda _: None)["toxicity"])
    worst = toxicity.reshape(-1, SAMPLES).max(1)
    said = np.concatenate([row.logprobs for _, row in texts])
    return {
        "expected_maximum_toxicity": asdict(interval(mean(worst), len(worst))),
        "perplexity": float(np.exp(-said.mean())),
        "tokens": float(np.mean([len(row.tokens) for _, row in texts])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("to", type=Path)
    for name in ("prompts", "contexts", "detoxify"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--strength", type=float, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--score", nargs="+", required=True)
    asked = parser.parse_args()
    names, judge = [one.split("=") for one in asked.score], DetoxifyScorer(asked.detoxify)
    tokenizer = load_tokenizer(Path(names[0][1]))
    rows: dict[str, Any] = {}
    for name, folder, signal in names:
        model: Any = OtterForCausalLM.from_pretrained(folder).eval()
        room = {"positions": model.shape.max_positions, "new_tokens": NEW}
        contexts, _ = load_prompts(
            PromptFile(prompts=asked.contexts, limit=CONTEXTS), tokenizer, **room
        )
        prompts, _ = load_prompts(
            PromptFile(prompts=asked.prompts, limit=asked.limit), tokenizer, **room
        )
        ends = model.generation_config.eos_token_id
        lexicon = lexicon_of(model, signal, [list(one.tokens) for one in contexts], ends)
        found = explained(model, signal, [list(one.tokens) for one in prompts], lexicon)
        if "plain" not in rows:
            rows["plain"] = judged(written(model, prompts, None), tokenizer, judge)
        for strength in asked.strength:
            whole = SignalGuide(signal, strength, CANDIDATES, end=False)
            guides = {
                "whole": whole,
                "lexicon": LexiconGuide(lexicon, strength),
                "rest": RestGuide(whole, lexicon, strength),
            }
            for part, guide in guides.items():
                figures = judged(written(model, prompts, guide), tokenizer, judge)
                found[f"{part} at {strength:g}"] = figures
                print(name, part, strength, figures, flush=True)
        rows[name] = found
        print(name, found["deviation"], found["share_of_lexicon"], flush=True)
        write_json(asked.to, {"rows": rows, "versions": provenance()["versions"]})


if __name__ == "__main__":
    main()
