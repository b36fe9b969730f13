"""What the loop trains, by one interface: the graft here, the baselines in `baselines/`.

`Trainable` is the interface. `BaselineTrainable` is what all baselines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import Positions
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.grafted_folder import update_tensors
from otter_cli.graft.manifest import TrainingRecord
from otter_cli.graft.plan import Plan
from otter_cli.model.load import quantisation_config
from otter_cli.model.otter import OtterForCausalLM, OtterOutput
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import ReadSignal
from otter_cli.training.sharding import ShardedInsertions, shard_graft
from otter_cli.training.shared_prefixes import SharedPrefixes
from otter_cli.training.signal_data import graft_signals

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.distributed import ProcessGroup
    from otter_cli.training.recipe import Recipe


class Trainable(ABC):
    """A folder that gives signals, with fp32 parameters to train."""

    folder: Path
    model: Any
    signals: Mapping[str, SignalConfig]
    # By their names on disk. Nothing else gets a gradient.
    parameters: Mapping[str, nn.Parameter]
    # Parameters whose gradient is zero for some initial values, and stays zero.
    gradient_free: frozenset[str] = frozenset()
    # The weight of `kl_to_base` in the loss.
    kl_weight: float = 0.0

    @abstractmethod
    def reader(self, name: str) -> ReadSignal:
        """Reads signal `name`, with a graph where gradients are enabled. One for each batch."""

    @abstractmethod
    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        """Writes the parameters and how they were trained into the folder."""

    def kl_to_base(self, batch: Batch) -> Tensor | None:
        """KL of the base's next-token distribution to the trained one, nats a token, [texts]; None
        where training cannot change the base."""
        return None

    def forwarded_tokens(self, batch: Batch) -> int:
        """How many tokens of a batch go through the model."""
        return batch.tokens

    def recompute_activations(self) -> bool:
        """From now on the backward pass computes activations again where it can, with the same
        values, instead of reading kept ones. Returns whether anything does."""
        return False

    def shard(self, recipe: Recipe, group: ProcessGroup, device: str) -> ShardedInsertions:
        """From now on this process holds and trains its shards alone. Raises OtterError where that
        is impossible."""
        raise OtterError(
            "--shard divides a frozen base, and a separate model has none", hint="leave --shard out"
        )


class GraftTrainable(Trainable):
    """A grafted folder: the base frozen in its own dtype, the insertion in fp32."""

    def __init__(self, folder: Path, recipe: Recipe, device: str = "cpu") -> None:
        self.folder = folder
        self.model: OtterForCausalLM = OtterForCausalLM.from_pretrained(
            folder,
            insertion_dtype=torch.float32,
            quantization_config=quantisation_config(recipe.quantize),
            device=device,
        )
        self.signals = graft_signals(folder, recipe)
        self.plans = [Plan(c, self.model.shape) for c in self.model.manifest.insertions]
        # An insertion without a signal of the recipe is not trained.
        configs = [
            p.config for p in self.plans if any(s.name in self.signals for s in p.config.signals)
        ]
        inserted = dict(self.model.inserted_parameters())
        trained = {
            name for config in configs for name in trained_parameter_names(config, recipe, inserted)
        }
        for name, parameter in inserted.items():
            parameter.requires_grad_(name in trained)
        self.parameters = self._trained_parameters()
        self.shards: ShardedInsertions | None = None
        self.gradient_free = frozenset().union(*map(zero_gradient_names, configs))

    def shard(self, recipe: Recipe, group: ProcessGroup, device: str) -> ShardedInsertions:
        self.shards = shard_graft(self.model, recipe, group, device)
        self.parameters = self._trained_parameters()
        return self.shards

    def recompute_activations(self) -> bool:
        self.model.capture.recompute = True
        return any(insertion.config.hidden for insertion in self.model.capture.insertions.values())

    def reader(self, name: str) -> ReadSignal:
        if self.shards is not None:
            self.shards.reshard()
        return _GraftReader(self.model, name, self.shards)

    def forwarded_tokens(self, batch: Batch) -> int:
        shared = SharedPrefixes.of(batch, self.model)
        return batch.tokens if shared is None else shared.tokens

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        manifest = self.model.manifest
        manifest = manifest.model_copy(update={"training": {**manifest.training, **records}})
        # Copies, since a storage that numpy has a view of cannot be resharded.
        tensors = {
            name: tensor.to("cpu", torch.float32, copy=True).numpy()
            for name, tensor in self.model.inserted_state_dict().items()
        }
        self.model.manifest = update_tensors(self.folder, self.plans, manifest, tensors)

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.inserted_parameters() if p.requires_grad}


class _GraftReader:
    """Reads one signal of a graft. The base and the streams run once for a batch, with a graph if
    the first read needs one, and once more for `at_positions_only`."""

    def __init__(
        self, model: OtterForCausalLM, name: str, shards: ShardedInsertions | None = None
    ) -> None:
        self.model, self.name, self.signal = model, name, model.signal_configs[name]
        self.shards = shards
        self.batch: Batch | None = None
        self.shared: SharedPrefixes | None = None

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        return self._with_full_parameters(lambda: self._read_head(batch, at, tokens))

    def at_positions_only(self, batch: Batch, at: Positions) -> Tensor:
        shared = SharedPrefixes.of(batch, self.model)
        positions = at if shared is None else shared.map_positions(at)
        return self._with_full_parameters(
            lambda: self._forward(batch, shared, positions).signals[self.name]
        )

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        """[N, vocab], without a graph."""
        with torch.no_grad():
            return self._with_full_parameters(
                lambda: self.model.lm_head(
                    self._forward_once(batch).base_state[self._map_positions(at)]
                )
            )

    def _with_full_parameters(self, read: Callable[[], Tensor]) -> Tensor:
        return read() if self.shards is None else self.shards.with_full_parameters(read)

    def _read_head(self, batch: Batch, at: Positions, tokens: Tensor | None) -> Tensor:
        out, at = self._forward_once(batch), self._map_positions(at)
        # Positions are selected before the head: a vocabulary head at all of them takes too much.
        inserted = {insertion: v[at] for insertion, v in out.inserted_state.items()}
        return self.model.read_signal(self.name, out.base_state[at], inserted, tokens)

    def _forward_once(self, batch: Batch) -> OtterOutput:
        if self.batch is not batch:
            self.shared = SharedPrefixes.of(batch, self.model)
            self.out, self.batch = self._forward(batch, self.shared), batch
        return self.out

    def _forward(
        self, batch: Batch, shared: SharedPrefixes | None, at: Positions | None = None
    ) -> OtterOutput:
        """The base without a graph, then the streams on its captured activations; the head at
        positions `at`, or not at all."""
        rows: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if shared is not None:
            rows = shared.model_inputs(self.model)
        signals = () if at is None else (self.name,)
        return self.model(**rows, at=at, signals=signals, logits=False, use_cache=False)

    def _map_positions(self, at: Positions) -> Positions:
        return at if self.shared is None else self.shared.map_positions(at)


class BaselineTrainable(Trainable):
    """One signal that is read from the final states of a model, which runs once for a batch. The
    trainable is its own reader."""

    # Whether the model's own dropout is on in training.
    dropout = False

    def __init__(self, folder: Path, signal: SignalConfig, model: Any, decoder: nn.Module) -> None:
        self.folder, self.signal, self.model, self.decoder = folder, signal, model, decoder
        self.signals = {signal.name: signal}
        self._batch: Batch | None = None
        self._states: Tensor | None = None

    @abstractmethod
    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor: ...

    def reader(self, name: str) -> ReadSignal:
        self._batch = self._states = None  # with the graph, if no backward pass has freed it
        return self

    def train_only(self, trained: Callable[[str], bool]) -> None:
        """Freezes all other parameters. No backward pass goes below the lowest trained one."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trained(name))
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def final_states(self, batch: Batch) -> Tensor:
        """y [rows, tokens, d] of a batch, by one forward."""
        if self._states is None or self._batch is not batch:
            self._states, self._batch = self.run_decoder(batch), batch
        return self._states

    def run_decoder(self, batch: Batch) -> Tensor:
        self.model.train(self.dropout and torch.is_grad_enabled())
        out = self.decoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        states: Tensor = out.last_hidden_state
        return states

    def squeeze_single_value(self, scores: Tensor) -> Tensor:
        """Scores [N, size], or [N] for a single value."""
        single = self.signal.kind == "value" and self.signal.size == 1
        return scores.squeeze(-1) if single else scores


def trained_parameter_names(
    config: InsertionConfig, recipe: Recipe, parameters: Iterable[str]
) -> set[str]:
    """The stream of one insertion and the heads of the recipe's signals, without the parts of a
    head that its loss does not depend on."""
    insertion = f"otter.{config.name}."
    heads = f"{insertion}signals."
    unused = {
        f"{heads}{signal.name}.{part}"
        for signal in config.signals
        if signal.name in recipe.signals
        for part in recipe.signals[signal.name].unused_parameters(signal)
    }
    return {
        name
        for name in parameters
        if name.startswith(insertion)
        and name not in unused
        and (
            not name.startswith(heads)
            or name.removeprefix(heads).partition(".")[0] in recipe.signals
        )
    }


def zero_gradient_names(config: InsertionConfig) -> frozenset[str]:
    """With zero embeddings the first layer's attention always reads u = 0."""
    if config.embedding == "table" or not config.heads:
        return frozenset()
    first = f"otter.{config.name}.layers.{min(config.layers)}.attention"
    inputs = ("query", "key", "value") if config.kv == "own" else ("query",)
    return frozenset([f"{first}.norm.weight", *(f"{first}.{name}.z.weight" for name in inputs)])
