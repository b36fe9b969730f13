"""What a decoding session gives in every kind of step, for comparisons of backends."""

from typing import Any

import torch
from torch import Tensor

from otter_cli.decoding.session import DecodingSession

PROMPTS = [[5, 9, 33, 40, 12, 7, 3], [60, 61, 62]]


@torch.no_grad()
def decoded_states(model: Any) -> tuple[Tensor, Tensor]:
    """Base states and rewards of every kind of step: a prefill of unequal prompts, tokens, looked
    at one by one and together, a chain, candidates and a tree."""
    session, states = DecodingSession(model), []
    states.append(session.prefill(PROMPTS))
    for token in (4, 17):
        states.append(session.step(torch.tensor([token, token + 1])))
        session.read("reward", states[-1])
    states.append(session.extend(torch.tensor([[8, 9, 10], [11, 12, 13]])))
    session.keep(torch.tensor([3, 1]))
    states.append(session.extend_candidates(torch.tensor([[20, 21, 22], [23, 24, 25]])))
    session.keep_candidate(torch.tensor([2, 0]))
    states += [session.step(torch.tensor([token, 50 - token])) for token in range(30, 33)]
    states.append(session.extend_tree(torch.tensor([[1, 2, 3], [4, 5, 6]]), [-1, 0, 0]))
    session.keep_path(torch.tensor([[0, 2], [0, 1]]), torch.tensor([2, 2]))
    states.append(session.step(torch.tensor([40, 41])))
    rewards = torch.cat([session.read("reward", state).flatten() for state in states])
    return torch.cat([state.base.flatten() for state in states]), rewards
