"""Readouts of the frozen base: heads alone, probes, the reward channel, and wide heads for future
tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_tensors
from otter_cli.core.errors import OtterError
from otter_cli.core.library_errors import translate_library_errors
from otter_cli.core.process import derive_seed
from otter_cli.data.batches import Positions
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.graft.manifest import Manifest, TrainingRecord
from otter_cli.graft.plan import Plan
from otter_cli.graft.surgery import graft
from otter_cli.model.lm_head import FrozenHead
from otter_cli.model.load import load_base
from otter_cli.model.readouts import (
    READOUTS,
    AttentionProbe,
    GatedProbe,
    Readout,
    ReadoutInputs,
    RewardChannel,
    SeparateNormRewardChannel,
)
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.heads import HEADS
from otter_cli.training.baselines.separate import check_scores_texts, write_training_records
from otter_cli.training.trainable import BaselineTrainable, GraftTrainable, Trainable

if TYPE_CHECKING:
    from otter_cli.data.datasets import Batch
    from otter_cli.training.recipe import Recipe

PROBE_FILE = "probe.safetensors"
WIDE_HEADS_FILE = "wide-heads.safetensors"


def graft_heads(folder: Path, to: Path, signals: tuple[SignalConfig, ...]) -> Path:
    """Grafts heads alone, D = 0, on the base of a graft, where `to` does not exist yet."""
    if not to.exists():
        base, record = Checkpoint.open(folder), Manifest.read(folder).base
        shape = base_shape(base.config)
        plan = Plan(resolve_config(shape, hidden=0, signals=signals), shape)
        graft(base, to, plan, source=record.source, revision=record.revision)
    return to


class ReadoutTrainable(BaselineTrainable):
    """A readout of the frozen base. Only the readout's weights are trained."""

    def __init__(
        self,
        source: Path,
        to: Path,
        signal: SignalConfig,
        recipe: Recipe,
        device: str,
        kind: type[Readout],
        reads: ReadoutInputs,
        width: int,
    ) -> None:
        shape = base_shape(Checkpoint.open(source).config)
        base: Any = load_base(source).to(device).eval().requires_grad_(False)
        super().__init__(to, signal, base, base.get_submodule(shape.family.decoder))
        weights = _initial_weights(kind, kind.shapes(shape, reads, signal.size, width), recipe.seed)
        base.readout = nn.ParameterDict(weights).to(device)
        self.readout = kind(base, shape, reads, base.readout)
        unused = recipe.signals[signal.name].unused_parameters(signal)
        self.parameters = {name: p for name, p in base.readout.items() if name not in unused}

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        if self._batch is not batch:
            self._scores, self._batch = self.readout(batch.input_ids, batch.attention_mask), batch
        return self.squeeze_single_value(self._scores[at])

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        metadata = {
            "readout": self.readout.name,
            "reads": self.readout.reads,
            "signal": self.signal.model_dump_json(),
        }
        tensors = dict(self.model.readout.items())
        write_readout(self.folder / PROBE_FILE, tensors, metadata, records)


def _initial_weights(
    kind: type[Readout], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, nn.Parameter]:
    """Zeros, and random values for the tensors that the readout names."""
    draw = torch.Generator().manual_seed(derive_seed("readout", kind.name, seed) % 2**63)
    return {
        name: nn.Parameter(
            torch.randn(form, generator=draw) * form[-1] ** -0.5
            if name in kind.random_tensors
            else torch.zeros(form)
        )
        for name, form in shapes.items()
    }


def make_probe(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> ReadoutTrainable:
    """The baseline `probe`: a gated linear probe of all layers."""
    check_scores_texts("a probe", signal)
    reads = recipe.baselines.probe.reads
    return ReadoutTrainable(source, to, signal, recipe, device, GatedProbe, reads, 0)


def make_mha_probe(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> ReadoutTrainable:
    """The baseline `mha-probe`: attention over layers and tokens."""
    check_scores_texts("an attention probe", signal)
    width = recipe.baselines.mha_probe.width
    return ReadoutTrainable(source, to, signal, recipe, device, AttentionProbe, "states", width)


def make_reward_channel(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> ReadoutTrainable:
    """The baseline `reward-channel`; by default as large as the graft."""
    check_scores_texts("a reward channel", signal)
    settings = recipe.baselines.reward_channel
    kind = RewardChannel if settings.norm == "joint" else SeparateNormRewardChannel
    shape = base_shape(Checkpoint.open(source).config)
    width = settings.width or _equal_channel_width(source, shape, signal.size)
    return ReadoutTrainable(source, to, signal, recipe, device, kind, "states", width)


def _equal_channel_width(folder: Path, shape: BaseShape, size: int) -> int:
    """The width at which the channel has as many parameters as the graft, to the nearest."""
    target = inserted_parameter_count(folder, shape)

    def difference(width: int) -> int:
        shapes = RewardChannel.shapes(shape, "states", size, width)
        return abs(sum(map(prod, shapes.values())) - target)

    # The count grows with the width, so the difference has one minimum.
    return min(range(1, 4 * shape.hidden), key=difference)


def load_probe(folder: Path, base: Any, shape: BaseShape) -> tuple[Readout, SignalConfig]:
    """A trained readout on a loaded base. Raises OtterError for another base's readout."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with translate_library_errors(folder / PROBE_FILE, "the probe", library="safetensors"):
        weights = load_file(folder / PROBE_FILE, device=str(base.device))
        with safe_open(folder / PROBE_FILE, "pt") as file:
            metadata = file.metadata()
        # Files of earlier versions name no readout: they hold gated probes.
        kind = READOUTS[metadata.get("readout", GatedProbe.name)]
        probe = kind(base, shape, metadata["reads"], weights)
        signal = SignalConfig.model_validate_json(metadata["signal"])
        actual = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = kind.shapes(shape, probe.reads, signal.size, kind.width_of(actual))
    if actual != expected:
        raise OtterError(
            f"{folder} holds {_shapes_text(actual)}; on this base it would be "
            f"{_shapes_text(expected)}",
            hint="use a probe with the base that it was trained on",
        )
    return probe, signal


def _shapes_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, form))}" for name, form in sorted(shapes.items()))


def write_readout(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    records: Mapping[str, TrainingRecord],
) -> None:
    """Writes the tensors of a readout and its training records into a folder without the base."""
    path.parent.mkdir(exist_ok=True)
    values = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    specs = {name: TensorSpec("F32", tuple(value.shape)) for name, value in values.items()}
    write_tensors(path, specs, values.__getitem__, metadata)
    write_training_records(path.parent, records)


class WideHeadsTrainable(BaselineTrainable):
    """Head k gives `unembed(y + W_k' silu(W_k y))`, W_k [width, d], from the base's final state
    alone. Medusa-1's own heads, of one square matrix, are the baseline `head`."""

    def __init__(
        self, source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
    ) -> None:
        if signal.kind != "future":
            raise OtterError(
                f"wide heads name future tokens; signal {signal.name!r} is of kind {signal.kind}",
                hint="for scores of texts there are probe, branch, lora, small and separate",
            )
        shape = base_shape(Checkpoint.open(source).config)
        base: Any = load_base(source).eval().requires_grad_(False)
        super().__init__(to, signal, base, base.get_submodule(shape.family.decoder))
        d, width = shape.hidden, recipe.baselines.wide.width
        width = width or equal_width(source, shape, signal.size)
        draw = torch.Generator().manual_seed(derive_seed("wide heads", recipe.seed) % 2**63)
        base.heads = nn.ParameterDict(
            {
                "in": torch.randn(signal.size, width, d, generator=draw) * d**-0.5,
                "out": torch.zeros(signal.size, d, width),
            }
        )
        base.to(device)
        self.unembedding = FrozenHead(base, shape)
        self.parameters = dict(base.heads.items())

    def __call__(self, batch: Batch, at: Positions, tokens: Tensor | None = None) -> Tensor:
        """[N, heads, vocab]. No head reads the tokens that follow."""
        heads, y = self.model.heads, self.final_states(batch)[at].float()
        inner = F.silu(torch.einsum("nd,kwd->nkw", y, heads["in"]))
        added = torch.einsum("nkw,kdw->nkd", inner, heads["out"])
        return self.unembedding.logits(y[:, None] + added)

    def run_decoder(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return super().run_decoder(batch)

    def base_logits(self, batch: Batch, at: Positions) -> Tensor:
        with torch.no_grad():
            return self.unembedding.logits(self.final_states(batch)[at])

    def write(self, records: Mapping[str, TrainingRecord]) -> None:
        metadata = {"signal": self.signal.model_dump_json()}
        write_readout(self.folder / WIDE_HEADS_FILE, self.parameters, metadata, records)


def make_wide(
    source: Path, to: Path, signal: SignalConfig, recipe: Recipe, device: str
) -> Trainable:
    """The baseline `wide`: a wider cell where the signal has one, wide heads where it has none."""
    if signal.kind != "future" or signal.width == 0:
        return WideHeadsTrainable(source, to, signal, recipe, device)
    wide = _with_wide_cell(source, signal, recipe.baselines.wide.width)
    return GraftTrainable(graft_heads(source, to, (wide,)), recipe, device)


def _with_wide_cell(folder: Path, signal: SignalConfig, width: int | None) -> SignalConfig:
    """The signal with a cell on the base's state alone; by default as large as the graft."""
    shape = base_shape(Checkpoint.open(folder).config)
    cells = (
        HEADS[signal.kind].shapes(
            signal.model_copy(update={"width": w}), shape.hidden, 0, shape.vocab
        )
        for w in (1, 2)
    )
    one, two = (sum(prod(form) for form in forms.values()) for forms in cells)
    equal = max(1, round((inserted_parameter_count(folder, shape) - one) / (two - one)) + 1)
    return signal.model_copy(update={"width": width or equal})


def equal_width(folder: Path, shape: BaseShape, heads: int) -> int:
    """The width at which the heads have as many parameters as the graft, to the nearest."""
    return max(1, round(inserted_parameter_count(folder, shape) / (2 * heads * shape.hidden)))


def inserted_parameter_count(folder: Path, shape: BaseShape) -> int:
    return sum(Plan(c, shape).parameters for c in Manifest.read(folder).insertions)
