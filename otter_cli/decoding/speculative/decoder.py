"""The loop of speculative decoding: draft, one pass over the tree, accept, keep the path.

Acceptance goes by the distribution that plain or guided decoding would draw from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.batch_state import BatchState
from otter_cli.decoding.guides.selector import GuidedSelector
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.sampling import Sampler, TokenSelector
from otter_cli.decoding.speculative.acceptance import (
    Acceptance,
    ExactRescorer,
    NearTieRecorder,
    accept_drafts,
)
from otter_cli.decoding.speculative.drafts import BatchDrafter, Draft


class SpeculativeDecoder:
    """Drafts come from the base's states; what stays is decided by the distribution that plain or
    guided decoding draws from."""

    def __init__(
        self,
        rows: BatchState,
        sampler: Sampler,
        drafting: BatchDrafter,
        chooser: TokenSelector,
        acceptance: Acceptance,
        exact: ExactRescorer | None = None,
    ) -> None:
        self.rows, self.session, self.sampler = rows, rows.session, sampler
        self.drafting, self.acceptance = drafting, acceptance
        self.steered = chooser if isinstance(chooser, GuidedSelector) else None
        self.exact = exact
        self.ties = NearTieRecorder(rows) if sampler.greedy and self.steered is None else None

    def run(self, state: HiddenStates) -> None:
        """`state`: of the prompts' last tokens, [rows, 1, ...]."""
        before = self.session.logits(state)  # [rows, 1, vocab]
        pending = self.sampler.choose(self._wanted(state, before)[:, 0])
        self._forget()
        while not self.rows.done:
            state, before, pending = self._step(state, before, pending)

    def _step(
        self, state: HiddenStates, before: Tensor, pending: Tensor
    ) -> tuple[HiddenStates, Tensor, Tensor]:
        draft = self.drafting.draft(state, self.rows.texts(pending)).within(self._room())
        fed = torch.cat([pending[:, None], draft.tokens], 1)
        parents = [-1, *(parent + 1 for parent in draft.parents)]
        states = self.session.extend(fed) if draft.is_chain else self.session.grow(fed, parents)
        logits = self.session.logits(states)
        wanted = self._wanted(states, logits)
        path, accepted, following = accept_drafts(wanted, draft, self.sampler, self.acceptance)
        if self.exact is not None:
            accepted, following = self._settled(pending, draft, logits, path, accepted, following)
        nodes = torch.nn.functional.pad(path + 1, (1, 0))  # 0: the pending token
        # A row that has ended keeps nothing, or it would run on past the window.
        self.session.keep_path(nodes, (accepted + 1) * self.rows.going)
        taken = _gather_nodes(logits, nodes)
        self.rows.add(fed.gather(1, nodes), torch.cat([before, taken[:, :-1]], 1), accepted + 1)
        self.rows.add_signals(states.along(nodes))
        self.rows.count_drafts(draft.lengths(), accepted)
        if self.ties is not None:
            self.ties.note(taken, accepted)
        last = nodes.gather(1, accepted[:, None])
        return states.along(last), _gather_nodes(logits, last), following

    def _room(self) -> int:
        """How many drafts may follow the pending token: no more than the rows have room for, nor
        past the length at which the base goes over to other angles, where drafts before it, and
        candidates of a guide after them, would be computed with those."""
        room, depth = self.rows.room - 1, self.session.depth
        if depth is not None:
            feeds = self.steered is not None and self.steered.feeds
            room = min(room, max(depth - 1 - feeds, 0))
        return room

    def _settled(
        self,
        pending: Tensor,
        draft: Draft,
        logits: Tensor,
        path: Tensor,
        accepted: Tensor,
        following: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What of the one row's accepted path plain decoding writes too, [1] each."""
        assert self.exact is not None
        drafts = path[0, : int(accepted[0])]
        kept, token = self.exact.settle(
            self.rows.texts(pending)[0],
            torch.cat([logits[0, :1], logits[0, drafts + 1]]),
            draft.tokens[0, drafts].tolist(),
            int(following[0]),
        )
        return torch.full_like(accepted, kept), torch.full_like(following, token)

    def _wanted(self, states: HiddenStates, logits: Tensor) -> Tensor:
        """What is decided by, [rows, m, vocab]."""
        return logits if self.steered is None else self.steered.over_nodes(states, logits)

    def _forget(self) -> None:
        """Candidates of the first token, where a guide had them fed."""
        if len(self.session.tree):
            self.session.keep(torch.zeros_like(self.session.positions))


def check_tree_guides(chooser: TokenSelector) -> None:
    """Raises OtterError where a guide can't score after tokens of a draft."""
    if isinstance(chooser, GuidedSelector):
        for guide, scorer in zip(chooser.guides, chooser.scorers, strict=True):
            if not scorer.over_trees:
                raise OtterError(
                    f"the guide {guide.name} follows one text, and drafts are many",
                    hint="draft with signals of the graft as guides, or leave --draft out",
                )


def _gather_nodes(logits: Tensor, nodes: Tensor) -> Tensor:
    return logits.gather(1, nodes[..., None].expand(-1, -1, logits.shape[-1]))
