"""What a step holds above the weights: told before the first one, and measured after the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as made_of_others

from otter_cli.core.seeds import seed_everything
from otter_cli.training.sharding import held

if TYPE_CHECKING:
    from otter_cli.training.loop import Run


def graph_bytes(run: Run) -> int:
    """Bytes that the longest rows' forward keeps for the backward pass, each storage once; a run
    that does not fit fails here. The parameters themselves are not counted."""
    return max(_kept(run, name) for name in run.recipe.signals)


def _kept(run: Run, name: str) -> int:
    objective, data = run.recipe.signals[name], run.material[name].train
    rows = (objective.batch_size or run.recipe.batch_size) // run.recipe.accumulate
    longest = sorted(range(len(data.lengths)), key=lambda row: -data.lengths[row])
    batch = data.batch(longest[: max(1, rows // run.group.size)]).to(run.device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seed_everything(run.recipe.seed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective.loss(run.trainee.reader(name), batch)
    # Quantised weights are made of other tensors, and no graph holds them.
    plain = [p for p in map(held, run.trainee.model.parameters()) if not made_of_others(p)]
    weights = {parameter.untyped_storage().data_ptr() for parameter in plain}
    # The graph lives up to here, so that no two storages had one address.
    del loss
    return sum(size for place, size in kept.items() if place not in weights)


class Peak:
    """Memory beyond what was held when it began: of the device, or of this process on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device if device.startswith("cuda") else None
        if self.device:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            import psutil

            self.before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        """Gradients and the optimiser's moments included."""
        if self.device:
            return torch.cuda.max_memory_allocated(self.device) - self.before
        import resource

        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before)
