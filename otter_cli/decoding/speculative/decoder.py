"""Speculative decoding: draft, one pass over the tree, accept, keep the path.

Acceptance goes by the distribution that plain or guided decoding would draw from. It is lossless:
exact match when greedy, rejection sampling over the tree when sampled. Typical acceptance is not
lossless, and must be asked for. See docs/method.md, "Drafting and exact acceptance".

A step of many tokens rounds differently from a step of one, so that two logits that nearly tie may
swap. A near-tie is reported, or decided by a step of one token in a session of its own
(`ExactRescorer`): the text is then that of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.batch_state import BatchState
from otter_cli.decoding.guides.guide import GuidedSelector
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.results import Generation, NearTie
from otter_cli.decoding.sampling import Sampler, greedy_tokens, invert_cdf
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.speculative.drafts import BatchDrafter, Draft
from otter_cli.model.otter import OtterForCausalLM

Acceptance = Literal["lossless", "typical"]

# Of typical acceptance: Medusa, section 2.3.1.
TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3
# In units in the last place of the largest logit: well above the difference of the two steps.
_TIE_ULPS = 64


class SpeculativeDecoder:
    """Decodes a batch by drafts. Raises OtterError where a guide cannot score draft trees."""

    def __init__(
        self,
        batch: BatchState,
        sampler: Sampler,
        drafter: BatchDrafter,
        selector: GuidedSelector | None,
        acceptance: Acceptance,
        rescorer: ExactRescorer | None = None,
    ) -> None:
        self.batch, self.session, self.sampler = batch, batch.session, sampler
        self.drafter, self.acceptance, self.rescorer = drafter, acceptance, rescorer
        self.selector = selector
        batch.lossy = acceptance != "lossless"
        if selector is not None:
            for guide, scorer in zip(selector.guides, selector.scorers, strict=True):
                if not scorer.supports_trees:
                    raise OtterError(
                        f"the guide {guide.name} follows one text, and drafts are many",
                        hint="draft with signals of the graft as guides, or leave --draft out",
                    )

    def run(self, state: HiddenStates) -> None:
        """Decodes until every row has ended, from the states [rows, 1, ...] of the prompts' last
        tokens."""
        logits = self.session.logits(state)  # [rows, 1, vocab]
        pending = self.sampler.choose(self._target_logits(state, logits)[:, 0])
        if len(self.session.tree):  # a guide fed candidates of the first token: drop them
            self.session.keep(torch.zeros_like(self.session.positions))
        while not self.batch.done:
            state, logits, pending = self._step(state, logits, pending)
        if self.rescorer is not None:
            self.batch.rescoring_passes = self.rescorer.passes

    def _step(
        self, state: HiddenStates, logits_before: Tensor, pending: Tensor
    ) -> tuple[HiddenStates, Tensor, Tensor]:
        """`pending` [rows] is the chosen token that is not fed yet; state and logits are those
        before it. Returns the same for the next step."""
        draft = self.drafter.draft(state, self.batch.texts(pending)).truncated(self._room())
        fed = torch.cat([pending[:, None], draft.tokens], 1)
        parents = [-1, *(parent + 1 for parent in draft.parents)]
        if draft.is_chain:
            states = self.session.extend(fed)
        else:
            states = self.session.extend_tree(fed, parents)
        logits = self.session.logits(states)
        target = self._target_logits(states, logits)
        path, accepted, following = accept_drafts(target, draft, self.sampler, self.acceptance)
        if self.rescorer is not None:  # the batch has one row
            drafts = path[0, : int(accepted[0])]
            kept, token = self.rescorer.decide_near_ties(
                self.batch.texts(pending)[0],
                torch.cat([logits[0, :1], logits[0, drafts + 1]]),
                draft.tokens[0, drafts].tolist(),
                int(following[0]),
            )
            accepted = torch.full_like(accepted, kept)
            following = torch.full_like(following, token)
        # 0: the pending token. Nothing reads the nodes after the longest accepted path.
        nodes = torch.nn.functional.pad(path[:, : int(accepted.max())] + 1, (1, 0))
        # A row that has ended keeps nothing: it would grow past the window.
        self.session.keep_path(nodes, (accepted + 1) * self.batch.running_mask)
        path_logits = _gather_nodes(logits, nodes)
        before = torch.cat([logits_before, path_logits[:, :-1]], 1)
        self.batch.add(fed.gather(1, nodes), before, accepted + 1)
        self.batch.add_signals(states.gather(nodes))
        self.batch.count_drafts(draft.lengths(), accepted)
        if self.sampler.greedy and self.selector is None:
            _record_near_ties(self.batch, path_logits, accepted)
        last = nodes.gather(1, accepted[:, None])
        return states.gather(last), _gather_nodes(logits, last), following

    def _room(self) -> int:
        """How many drafts may follow the pending token: no more than the rows have room for, and
        none past the length at which the base changes its rotary angles, because one pass has one
        set of angles. That holds for a guide's candidates after the drafts too."""
        room, depth = self.batch.room - 1, self.session.depth
        if depth is not None:
            candidates = self.selector is not None and self.selector.needs_candidate_states
            room = min(room, max(depth - 1 - candidates, 0))
        return room

    def _target_logits(self, states: HiddenStates, logits: Tensor) -> Tensor:
        """The logits that acceptance goes by, [rows, m, vocab]."""
        return logits if self.selector is None else self.selector.guide_tree(states, logits)


def _gather_nodes(logits: Tensor, nodes: Tensor) -> Tensor:
    """Logits [rows, m, vocab] at `nodes` [rows, m]. `gather` would need an index of that size."""
    return logits[torch.arange(len(nodes), device=nodes.device)[:, None], nodes]


def accept_drafts(
    logits: Tensor, draft: Draft, sampler: Sampler, acceptance: Acceptance = "lossless"
) -> tuple[Tensor, Tensor, Tensor]:
    """Decides drafts by logits [rows, 1 + n, vocab] at the pending token and at each draft.

    Returns the accepted path [rows, depth] in indices of drafts, its length [rows], and the token
    after it, [rows].
    """
    if sampler.greedy:
        return _accept_greedy(greedy_tokens(logits), draft)
    return _accept_by_rejection(logits, draft, sampler, acceptance)


def _accept_greedy(best: Tensor, draft: Draft) -> tuple[Tensor, Tensor, Tensor]:
    """A draft is kept where it is the greedy token of its parent; `best` [rows, 1 + n]."""
    children, depth = draft.children().tolist(), max(draft.depths, default=0)
    paths, rows = [], (best.tolist(), draft.tokens.tolist(), draft.valid.tolist())
    for choices, tokens, valid in zip(*rows, strict=True):
        node, path = 0, list[int]()
        while True:
            equal = (
                c for c in children[node] if c >= 0 and valid[c] and tokens[c] == choices[node]
            )
            if (child := next(equal, None)) is None:
                break
            path.append(child)
            node = child + 1
        paths.append(path)
    padded = [path + [0] * (depth - len(path)) for path in paths]
    last = best.new_tensor([path[-1] + 1 if path else 0 for path in paths])
    following = best.gather(1, last[:, None])[:, 0]
    shaped = best.new_tensor(padded).view(len(paths), depth)
    return shaped, best.new_tensor([len(path) for path in paths]), following


def _accept_by_rejection(
    logits: Tensor, draft: Draft, sampler: Sampler, acceptance: Acceptance
) -> tuple[Tensor, Tensor, Tensor]:
    """Rejection sampling: draft d, which has no distribution of its own, is kept with probability
    p(d). Else p loses d, and the next sibling is tried. The last p gives the token (Leviathan et
    al., arXiv 2211.17192, with q a point mass; SpecInfer, arXiv 2305.09781, over trees).
    """
    rows, device = torch.arange(len(logits), device=logits.device), logits.device
    children = draft.children()
    node = torch.zeros(len(logits), dtype=torch.long, device=device)  # 0: the pending token
    running = torch.ones_like(node, dtype=torch.bool)
    remaining = sampler.probabilities(logits[:, 0])
    depth = max(draft.depths, default=0)
    path = torch.zeros(len(logits), depth, dtype=torch.long, device=device)
    length = torch.zeros_like(node)
    for level in range(depth):
        if not bool(running.any()):
            break
        parent, moved = node, torch.zeros_like(running)
        for sibling in range(children.shape[1]):
            child = children[parent, sibling]
            tried = running & ~moved & (child >= 0) & draft.valid[rows, child]
            token = draft.tokens[rows, child.clamp(min=0)]
            accepted = tried & _is_accepted(remaining, token, tried, sampler, acceptance)
            if acceptance == "lossless":
                rest = remaining.scatter(1, token[:, None], 0.0)
                remaining = torch.where((tried & ~accepted)[:, None], rest, remaining)
            node, moved = torch.where(accepted, child + 1, node), moved | accepted
        path[:, level] = torch.where(moved, node - 1, 0)
        length, running = length + moved, moved
        next_distribution = sampler.probabilities(logits[rows, node])
        remaining = torch.where(moved[:, None], next_distribution, remaining)
    return path, length, invert_cdf(remaining, sampler.uniform_per_row())


def _is_accepted(
    remaining: Tensor, token: Tensor, tried: Tensor, sampler: Sampler, acceptance: Acceptance
) -> Tensor:
    probability = remaining.gather(1, token[:, None])[:, 0]
    if acceptance == "typical":
        entropy = -(remaining * remaining.clamp(min=1e-30).log()).sum(-1)
        return probability > (TYPICAL_DELTA * (-entropy).exp()).clamp(max=TYPICAL_EPSILON)
    return sampler.uniform_per_row(tried) * remaining.sum(-1) < probability


def near_tie_gap(logits: Tensor) -> Tensor:
    """The gap [...] below which two logits of [..., vocab] count as tied."""
    return _TIE_ULPS * torch.finfo(logits.dtype).eps * logits.abs().amax(-1).double()


def _top_gaps(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [..., vocab]: the two best tokens [..., 2], the gap of their logits [...], and
    whether they nearly tie."""
    top = logits.topk(2, -1)
    gaps = top.values[..., 0].double() - top.values[..., 1].double()
    return top.indices, gaps, gaps < near_tie_gap(logits)


def _record_near_ties(batch: BatchState, logits: Tensor, accepted: Tensor) -> None:
    """Records near-ties in the batch's generations, by the logits [rows, m, vocab] along the
    accepted path: each of the first `accepted` + 1 chose the token after it."""
    best, gaps, tied = (part.cpu() for part in _top_gaps(logits))
    if not bool(tied.any()):
        return
    for row, generation in enumerate(batch.generations):
        # The token after the last accepted one is pending: it comes next, unless the row has ended.
        first = len(generation.tokens) - batch.tokens_taken[row] + 1
        end = len(generation.tokens) + batch.running[row]
        for m in range(min(int(accepted[row]) + 1, batch.tokens_taken[row])):
            if tied[row, m] and first + m < end:
                token, second = best[row, m].tolist()
                tie = NearTie(first + m, token, second, float(gaps[row, m]))
                generation.near_ties.append(tie)


class ExactRescorer:
    """Plain decoding of one prompt, in steps of one token, as far as a near-tie needs it."""

    def __init__(self, model: OtterForCausalLM, prompt: list[int]) -> None:
        self.model, self.prompt = model, prompt
        self.fed_tokens: list[int] = []
        self.session = DecodingSession(model, stream=False, windows="cached")

    @property
    def passes(self) -> int:
        return self.session.passes

    def choice(self, text: list[int]) -> int:
        """The greedy token after `text`, which starts with the prompt and the last call's text."""
        if not self.fed_tokens:
            self.state = self.session.prefill([self.prompt])
            self.fed_tokens = list(self.prompt)
        for token in text[len(self.fed_tokens) :]:
            self.state = self.session.step(torch.tensor([token], device=self.session.device))
        self.fed_tokens = list(text)
        return int(self.session.logits(self.state)[0, 0].argmax())

    def decide_near_ties(
        self, text: list[int], logits: Tensor, path: list[int], following: int
    ) -> tuple[int, int]:
        """How many drafts of the accepted `path` (tokens) stay after `text`, and the token after
        them, by logits [1 + path, vocab] at the text's last token and along the path."""
        tied = _top_gaps(logits)[2].tolist()
        chosen = [*path, following]
        for place, token in enumerate(chosen):
            if tied[place] and (exact := self.choice([*text, *path[:place]])) != token:
                return place, exact
        return len(path), following


def rescore_near_ties(
    model: OtterForCausalLM, prompt: Sequence[int], generation: Generation
) -> None:
    """Records at each near-tie of a generation what a step of one token chooses. Costs a prefill
    and a pass for each token up to the last near-tie; without any, nothing."""
    if not generation.near_ties:
        return
    rescorer = ExactRescorer(model, list(prompt))
    generation.near_ties = [
        replace(tie, one_token=rescorer.choice([*prompt, *generation.tokens[: tie.position]]))
        for tie in generation.near_ties
    ]
    generation.counters.rescoring_passes += rescorer.passes
