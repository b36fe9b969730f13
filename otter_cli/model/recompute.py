"""Training a stream with less memory: a layer computes its intermediate values again.

The graph of a layer keeps what the layer reads: z, and the base's activations in the base's dtype.
The backward pass runs the layer once more for all else. Values and gradients are bit-equal, since
the same operations run on the same tensors. torch's own checkpoints do the work."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from otter_cli.model.activations import BranchActivations, LayerInput

# The tensors of a branch. They go to the checkpoint as arguments, where the hooks that count what
# a graph keeps see them.
_TENSORS = ("normed", "residual", "base_out", "branch_out")


def run_recomputed(
    inserted: nn.Module, z: Tensor, layer: LayerInput, own_keys: bool, *arguments: Any
) -> Tensor:
    """`inserted(z, attention, ffn, *arguments)`, whose intermediate values are not kept.
    `own_keys`: the inserted heads read no keys and values of the base."""
    branches = layer.attention, layer.ffn
    tensors = [getattr(branch, name) for branch in branches for name in _TENSORS]
    attention, ffn = copy(layer.attention), copy(layer.ffn)
    if (call := copy(attention.call)) is not None:
        tensors += [None, None] if own_keys else [call.key, call.value]
        call.release_keys_and_values()
    # The arguments of the module's call hold x too.
    attention.call, attention.kwargs = call, {"position_embeddings": attention.embeddings}
    for branch in (attention, ffn):
        _set_tensors(branch, [None] * len(_TENSORS))

    def run(z: Tensor, *tensors: Any) -> Any:
        own_attention, own_ffn = copy(attention), copy(ffn)
        _set_tensors(own_attention, tensors[: len(_TENSORS)])
        _set_tensors(own_ffn, tensors[len(_TENSORS) : 2 * len(_TENSORS)])
        if call is not None and not own_keys:
            own_attention.call = copy(call)
            own_attention.call.key, own_attention.call.value = tensors[-2:]
        return inserted(z, own_attention, own_ffn, *arguments)

    # Nothing in a layer is random.
    after: Tensor = checkpoint(run, z, *tensors, use_reentrant=False, preserve_rng_state=False)
    return after


def _set_tensors(branch: BranchActivations, tensors: Sequence[Tensor | None]) -> None:
    for name, tensor in zip(_TENSORS, tensors, strict=True):
        setattr(branch, name, tensor)
