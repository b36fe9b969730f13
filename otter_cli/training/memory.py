"""The memory of a training step: counted before the first one, and kept within a budget.

A step keeps activations for its backward pass. Where those of a batch are too many, the graft's
layers compute theirs again in the backward pass (`model/recompute.py`), which changes no bit of the
result. Where that is not enough, the batch goes through the model in several passes, whose
gradients are summed: equal up to rounding, but for losses that draw random numbers, which draw
others. The plan depends on the recipe, the data, the model and the kind of device alone, so that a
resumed run makes the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_wrapper_tensor

from otter_cli.core.formatting import bytes_text
from otter_cli.core.process import seed_everything
from otter_cli.training.sharding import local_shard

if TYPE_CHECKING:
    from otter_cli.training.loop import TrainingRun

# Activations of a step may take this much, or as much as the frozen weights if those are larger.
_LEAST_BUDGET = 500_000_000
# A process whose steps keep less than this may keep the memory that they free.
_LITTLE = 200_000_000
# A GPU is there to be used.
_SHARE_OF_GPU = 0.4


@dataclass(frozen=True)
class MemoryPlan:
    """How steps keep within the budget. `activations`: bytes that a pass keeps for its backward
    pass, on the longest rows, of the signal that needs most; `passes` by signal."""

    activations: int
    recompute: bool
    passes: dict[str, int]

    @property
    def keeps_little(self) -> bool:
        """Whether freed memory may stay with the process, which is faster. Blocks of many sizes
        leave gaps: a step that kept 830 MB grew to 3.3 GB in three steps, where 2.0 were in use."""
        return self.activations < _LITTLE

    def description(self, recipe_passes: int) -> str:
        text = (
            f"a step keeps {bytes_text(self.activations)} of activations for its gradients, on the "
            "longest rows"
        )
        if self.recompute:
            text += "; to keep no more, layers of the stream run again in the backward pass"
        most = max(self.passes.values())
        if most > recipe_passes:
            text += f"; a batch goes through the model in {most} passes"
        return text


def plan_memory(run: TrainingRun) -> MemoryPlan:
    """Chooses how the run's steps keep their activations within the budget, and sets it in the run.
    Measured on one row and on two, the longest ones: a whole batch might not fit. What is chosen is
    then measured as it is; a step that needs too much memory fails here, before step 1."""
    budget, trainable = activation_budget(run), run.trainable
    needed = {name: _bytes_by_rows(run, name) for name in run.recipe.signals}
    fits = all(needed[name](_rows_of_pass(run, name)) <= budget for name in needed)
    recompute = any(run.group.all_gather(not fits)) and trainable.recompute_activations()
    if recompute:
        needed = {name: _bytes_by_rows(run, name) for name in run.recipe.signals}
    for name, bytes_of in needed.items():
        rows = _rows_of_pass(run, name)
        splits = (n for n in range(1, rows) if bytes_of(-(-rows // n)) <= budget)
        run.passes[name] *= max(run.group.all_gather(next(splits, rows)))
    kept = max(activation_bytes(run, name, _rows_of_pass(run, name)) for name in needed)
    return MemoryPlan(kept, recompute, dict(run.passes))


def activation_budget(run: TrainingRun) -> int:
    """How many bytes of activations a pass may keep. Free memory does not count: it differs from
    run to run."""
    frozen = sum(
        local_shard(parameter).nbytes
        for parameter in run.trainable.model.parameters()
        if not parameter.requires_grad
    )
    budget = max(_LEAST_BUDGET, frozen)
    if run.device.startswith("cuda"):
        total = torch.cuda.get_device_properties(run.device).total_memory
        budget = max(budget, int(_SHARE_OF_GPU * total))
    return budget


def _rows_of_pass(run: TrainingRun, name: str) -> int:
    """The rows of this process that a pass takes, of a whole batch."""
    return max(1, -(-run.batch_rows(name) // (run.passes[name] * run.group.size)))


def _bytes_by_rows(run: TrainingRun, name: str) -> Callable[[int], float]:
    """An estimate of `activation_bytes` by the number of rows."""
    first = activation_bytes(run, name, 1)
    if _rows_of_pass(run, name) == 1:
        return lambda rows: first
    each = activation_bytes(run, name, 2) - first
    return lambda rows: first + each * (rows - 1)


def activation_bytes(run: TrainingRun, name: str, rows: int) -> int:
    """Bytes that a forward of a signal's `rows` longest rows keeps for its backward pass; each
    storage counts once, parameters do not count."""
    objective, data = run.recipe.signals[name], run.data[name].train
    longest = sorted(range(len(data.lengths)), key=lambda row: -data.lengths[row])
    batch = data.batch(longest[:rows]).to(run.device)
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        # The tensor itself may own the graph that keeps it, and would never be freed.
        return tensor.detach()

    seed_everything(run.recipe.seed)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = objective.loss(run.trainable.reader(name), batch), run.trainable.kl_to_base(batch)
    # Quantised weights wrap other tensors. No graph saves them.
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in map(local_shard, run.trainable.model.parameters())
        if not is_wrapper_tensor(parameter)
    }
    # The graph is kept alive up to here, so that no two storages had the same address.
    del loss
    return sum(size for address, size in saved.items() if address not in weights)


class PeakMemory:
    """Memory above what was in use at the start: of the device, or of this process on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device if device.startswith("cuda") else None
        if self.device:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            import psutil

            self.before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        """Gradients and the optimiser's moments are included."""
        if self.device:
            return torch.cuda.max_memory_allocated(self.device) - self.before
        import resource

        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before)
