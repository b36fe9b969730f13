"""What the loop trains: a graft here, a separate model in separate.py, by one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from otter_cli.insertion import Plan, TrainingRecord, update_tensors
from otter_cli.model import OtterForCausalLM, OtterOutput
from otter_cli.model.quantised import quantisation_config
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Positions, Read
from otter_cli.training.shared_prefixes import SharedPrefixes
from otter_cli.training.targets import graft_signals, trained_names, without_gradient

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.recipe import Recipe
    from otter_cli.training.sharding import Shards


class Trainee(Protocol):
    """Something in a folder that gives signals, with parameters in fp32 to train."""

    folder: Path
    model: Any
    signals: Mapping[str, SignalConfig]
    # Names as on disk; nothing else gets a gradient.
    parameters: Mapping[str, nn.Parameter]
    # Parameters that an initialisation leaves without a gradient.
    gradient_free: frozenset[str]

    def reader(self, name: str) -> Read:
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


class SeparateRows:
    """A trainee that reads every text as a row of its own."""

    def fed(self, batch: Batch) -> int:
        return batch.tokens


class Driftless(SeparateRows):
    """A trainee beside the base, or apart from it."""

    drift_weight = 0.0

    def drift(self, batch: Batch) -> Tensor | None:
        return None


class _Reader:
    """The streams of a batch are run once, with a graph if the first read demands one; and once
    more for what is read `alone`."""

    def __init__(self, model: OtterForCausalLM, name: str, shards: Shards | None = None) -> None:
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


class GraftTrainee(Driftless):
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
        trained = {name for config in ours for name in trained_names(config, recipe, inserted)}
        for name, parameter in inserted.items():
            parameter.requires_grad_(name in trained)
        self.parameters: Mapping[str, nn.Parameter] = self._trained()
        self.shards: Shards | None = None
        self.gradient_free = frozenset().union(*map(without_gradient, ours))

    def train_shards(self, shards: Shards) -> None:
        """Trains this process's parts alone."""
        self.shards, self.parameters = shards, self._trained()

    def reader(self, name: str) -> Read:
        if self.shards is not None:
            self.shards.part()
        return _Reader(self.model, name, self.shards)

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
