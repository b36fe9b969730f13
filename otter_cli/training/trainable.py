"""What the loop trains, by one interface: the graft here, the baselines in `baselines`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import bytes_text
from otter_cli.data.batches import Positions
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import TrainingRecord
from otter_cli.graft.plan import Plan
from otter_cli.model.load import quantisation_config
from otter_cli.model.otter import OtterForCausalLM, OtterOutput
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import ReadSignal
from otter_cli.training.sharding import ShardedInsertions, local_shard
from otter_cli.training.shared_prefixes import SharedPrefixes
from otter_cli.training.signal_data import graft_signals

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.distributed import ProcessGroup
    from otter_cli.training.recipe import Recipe


def trained_parameter_names(
    config: InsertionConfig, recipe: Recipe, parameters: Iterable[str]
) -> set[str]:
    """The stream of one insertion and the heads of the recipe's signals, but for parts that a loss
    cannot see."""
    own = f"otter.{config.name}."
    heads = f"{own}signals."
    untouched = {
        f"{heads}{signal.name}.{part}"
        for signal in config.signals
        if signal.name in recipe.signals
        for part in recipe.signals[signal.name].untouched(signal)
    }
    return {
        name
        for name in parameters
        if name.startswith(own)
        and name not in untouched
        and (
            not name.startswith(heads)
            or name.removeprefix(heads).partition(".")[0] in recipe.signals
        )
    }


def zero_gradient_names(config: InsertionConfig) -> frozenset[str]:
    """With zero embeddings the first layer's attention sees u = 0, and always will."""
    if config.embedding == "table" or not config.heads:
        return frozenset()
    first = f"otter.{config.name}.layers.{min(config.layers)}.attention"
    inputs = ("query", "key", "value") if config.kv == "own" else ("query",)
    return frozenset([f"{first}.norm.weight", *(f"{first}.{name}.z.weight" for name in inputs)])


class Trainable(Protocol):
    """Something in a folder that gives signals, with parameters in fp32 to train."""

    folder: Path
    model: Any
    signals: Mapping[str, SignalConfig]
    # Names as on disk; nothing else gets a gradient.
    parameters: Mapping[str, nn.Parameter]
    # Parameters that an initialisation leaves without a gradient.
    gradient_free: frozenset[str]

    def reader(self, name: str) -> ReadSignal:
        """Reads signal `name`, with a graph where gradients are enabled. One for each batch."""

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        """Makes the folder say what the parameters now are, and how they came about."""

    # What the loss adds of a text's drift.
    drift_weight: float

    def drift(self, batch: Batch) -> Tensor | None:
        """KL of the base's next tokens to what they have become, nats a token, [texts]; None of a
        trainee that cannot change them."""

    def fed(self, batch: Batch) -> int:
        """How many tokens go through the model for it."""


class UnsharedRows:
    """A trainee that reads every text as a row of its own."""

    def fed(self, batch: Batch) -> int:
        return batch.tokens


class KLFree(UnsharedRows):
    """A trainee beside the base, or apart from it."""

    drift_weight = 0.0

    def drift(self, batch: Batch) -> Tensor | None:
        return None


class _GraftReader:
    """The streams of a batch are run once, with a graph if the first read demands one; and once
    more for what is read `alone`."""

    def __init__(
        self, model: OtterForCausalLM, name: str, shards: ShardedInsertions | None = None
    ) -> None:
        self.model, self.name, self.signal = model, name, model.signal_configs[name]
        self.shards = shards
        self.batch: Batch | None = None
        self.shared: SharedPrefixes | None = None

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        return self._with_whole(lambda: self._read(batch, at, tokens))

    def alone(self, batch: Batch, at: Positions) -> Tensor:
        shared = SharedPrefixes.of(batch, self.model)
        places = at if shared is None else shared.places(at)
        return self._with_whole(lambda: self._run(batch, shared, places).signals[self.name])

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        """[N, vocab], without a graph."""
        with torch.no_grad():
            return self._with_whole(
                lambda: self.model.lm_head(self._once(batch).base_state[self._places(at)])
            )

    def _with_whole(self, read: Callable[[], Tensor]) -> Tensor:
        return read() if self.shards is None else self.shards.read(read)

    def _read(self, batch: Batch, at: Positions, tokens: Tensor | None) -> Tensor:
        out, at = self._once(batch), self._places(at)
        # Chosen positions first: a vocabulary head on all of them would dwarf the rest.
        inserted = {insertion: v[at] for insertion, v in out.inserted_state.items()}
        return self.model.read_signal(self.name, out.base_state[at], inserted, tokens)

    def _once(self, batch: Batch) -> OtterOutput:
        if self.batch is not batch:
            self.shared = SharedPrefixes.of(batch, self.model)
            self.out, self.batch = self._run(batch, self.shared), batch
        return self.out

    def _run(
        self, batch: Batch, shared: SharedPrefixes | None, at: Positions | None = None
    ) -> OtterOutput:
        rows: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if shared is not None:
            rows = shared.arguments(self.model)
        # Of all positions no signal is read at once.
        signals = () if at is None else (self.name,)
        return self.model(**rows, at=at, signals=signals, logits=False, use_cache=False)

    def _places(self, at: Positions) -> Positions:
        return at if self.shared is None else self.shared.places(at)


class GraftTrainable(KLFree):
    """A grafted folder: the base frozen in its own dtype, the insertion in fp32."""

    def __init__(self, folder: Path, recipe: Recipe, device: str = "cpu") -> None:
        self.folder = folder
        self.model: OtterForCausalLM = OtterForCausalLM.from_pretrained(
            folder,
            insertion_dtype=torch.float32,
            quantization_config=quantisation_config(recipe.quantize),
            device=device,
        )
        self.signals: Mapping[str, SignalConfig] = graft_signals(folder, recipe)
        self.plans = [Plan(c, self.model.shape) for c in self.model.manifest.insertions]
        # Another insertion, which the recipe trains nothing of, stays as it is.
        ours = [
            p.config for p in self.plans if any(s.name in self.signals for s in p.config.signals)
        ]
        inserted = dict(self.model.inserted_parameters())
        trained = {
            name for config in ours for name in trained_parameter_names(config, recipe, inserted)
        }
        for name, parameter in inserted.items():
            parameter.requires_grad_(name in trained)
        self.parameters: Mapping[str, nn.Parameter] = self._trained()
        self.shards: ShardedInsertions | None = None
        self.gradient_free = frozenset().union(*map(zero_gradient_names, ours))

    def train_shards(self, shards: ShardedInsertions) -> None:
        """Trains this process's parts alone."""
        self.shards, self.parameters = shards, self._trained()

    def reader(self, name: str) -> ReadSignal:
        if self.shards is not None:
            self.shards.part()
        return _GraftReader(self.model, name, self.shards)

    def fed(self, batch: Batch) -> int:
        shared = SharedPrefixes.of(batch, self.model)
        return batch.tokens if shared is None else shared.tokens

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        manifest = self.model.manifest
        manifest = manifest.model_copy(update={"training": {**manifest.training, **records}})
        # Copies: what numpy has seen of a tensor cannot be parted again.
        tensors = {
            name: tensor.to("cpu", torch.float32, copy=True).numpy()
            for name, tensor in self.model.inserted_state_dict().items()
        }
        self.model.manifest = update_tensors(self.folder, self.plans, manifest, tensors)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.inserted_parameters() if p.requires_grad}


def shard_trainable(
    trainee: Trainable, recipe: Recipe, group: ProcessGroup, device: str
) -> ShardedInsertions:
    """Shards the base's layers and the insertions. Embedding and output head, whose rows signals
    read, stay whole in each process.

    Raises OtterError where no base is frozen, torch is too old, weights or an optimiser's matrices
    cannot be parted, or no other process is there to hold the rest.
    """

    if not isinstance(trainee, GraftTrainable):
        raise OtterError(
            "--shard parts a frozen base, and a separate model has none", hint="leave --shard out"
        )
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise OtterError(
            f"--shard adds gradients up, which FSDP2 of torch {torch.__version__} cannot",
            hint="a later torch can: pip install -U torch; or leave --shard out",
        )
    if group.size == 1:
        raise OtterError(
            "--shard needs several processes",
            hint="torchrun --nproc-per-node 2 -m otter_cli train ... --shard",
        )
    if recipe.quantize is not None:
        raise OtterError(
            f"--shard parts the file's own weights, and quantize: {recipe.quantize} packs them",
            hint="--set quantize=null, or leave --shard out: each is a way to need less memory",
        )
    if recipe.optimizer == "muon":
        raise OtterError(
            "optimizer: muon orthogonalises whole matrices, and --shard parts them",
            hint="--set optimizer=adamw, or leave --shard out",
        )
    base, shape = trainee.model.base, trainee.model.shape
    inserted = [parameter for _, parameter in trainee.model.inserted_parameters()]
    before = _local_bytes(base.parameters()), _local_bytes(inserted)
    mesh = init_device_mesh(torch.device(device).type, (group.size,))
    for layer in base.get_submodule(shape.family.layers).children():
        fully_shard(layer, mesh=mesh)
    shards = ShardedInsertions(trainee.model.insertions, mesh)
    trainee.train_shards(shards)
    after = (
        _local_bytes(base.parameters()),
        _local_bytes(p for _, p in trainee.model.inserted_parameters()),
    )
    say(
        f"each of {group.size} processes holds {bytes_text(after[0])} of the base's "
        f"{bytes_text(before[0])} and {bytes_text(after[1])} of the insertion's "
        f"{bytes_text(before[1])}"
    )
    return shards


def _local_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(local_shard(p).numel() * p.element_size() for p in parameters)
