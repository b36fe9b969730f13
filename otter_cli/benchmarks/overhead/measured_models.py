"""The models that are measured, in memory: stock bases, grafts on their weights, and others.

Bases have the shapes of real models and random weights: the cost of a pass does not depend on
the values. Grafts can be sized to a share of the base's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from otter_cli.benchmarks.overhead.measuring import (
    ALL_ROUNDS,
    CountedWork,
    MachineRates,
    Pace,
    PassShape,
    base_work,
    inserted_work,
    synchroniser,
)
from otter_cli.benchmarks.overhead.result import OverheadSettings
from otter_cli.core.errors import OtterError, did_you_mean
from otter_cli.core.process import derive_seed
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.manifest import BaseRecord, Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import InsertedRecord, inserted_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from otter_cli.model.otter import OtterForCausalLM
    from otter_cli.signals.config import SignalConfig


def _shape(
    model_type: str,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    vocab: int,
    window: int,
    **more: Any,
) -> dict[str, Any]:
    """Settings of a transformers configuration; `window` is the most positions."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": window,
        **more,
    }  # fmt: skip


_GROUPED_AND_TIED = {"num_key_value_heads": 8, "tie_word_embeddings": True}
SHAPES = {
    # For a smoke run: its ratios say nothing about a model of a real size.
    "tiny": _shape("llama", 2, 64, 4, 160, 256, 512),
    "llama-134m": _shape("llama", 12, 768, 12, 2048, 32_000, 8192),
    "qwen3-0.6b": _shape(
        "qwen3", 28, 1024, 16, 3072, 151_936, 40_960, head_dim=128, **_GROUPED_AND_TIED
    ),
    "llama-1b": _shape("llama", 16, 2048, 32, 8192, 128_256, 131_072, **_GROUPED_AND_TIED),
    "llama-7b": _shape("llama", 32, 4096, 32, 11_008, 32_000, 8192),
}


def shape_config(name: str) -> Any:
    """The transformers configuration of a shape. Raises OtterError for an unknown name."""
    from transformers import AutoConfig

    if name not in SHAPES:
        raise OtterError(
            f"there is no shape {name!r}",
            hint=did_you_mean(name, SHAPES) + f"shapes: {', '.join(SHAPES)}",
        )
    settings = dict(SHAPES[name])
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def random_base(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A stock model of that shape. Its weights are drawn on `device`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            shape_config(name), dtype=dtype, trust_remote_code=False
        ).eval()


@dataclass(frozen=True)
class BaseWithGraft:
    """`stock` has no hooks of otter. `file_bytes`: of the inserted files, if they are on disk."""

    name: str
    stock: PreTrainedModel
    shape: BaseShape
    graft: OtterForCausalLM
    plans: Sequence[Plan]
    file_bytes: int | None = None

    def base_work(self, step: PassShape) -> CountedWork:
        return base_work(self.shape, self.layer_weights, step)

    def inserted_work(self, step: PassShape) -> CountedWork:
        return sum((inserted_work(plan, step) for plan in self.plans), CountedWork(0, 0))

    @property
    def layer_weights(self) -> int:
        """Matrix elements in the decoder's layers, which every token is multiplied with."""
        layers: Any = self.stock.get_submodule(self.shape.family.layers)
        return sum(p.numel() for p in layers.parameters() if p.ndim > 1)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.stock.parameters())

    @property
    def inserted(self) -> int:
        return sum(plan.parameters for plan in self.plans)


def from_shape(
    name: str, sizes: dict[str, Any], *, dtype: torch.dtype, device: str
) -> BaseWithGraft:
    """A random base of that shape with an insertion of `sizes`, as in `resolve_config`."""
    stock = random_base(name, dtype, device)
    shape = base_shape(stock.config.to_dict())
    return graft_in_memory(name, stock, Plan(resolve_config(shape, init="normal", **sizes), shape))


def graft_in_memory(name: str, stock: PreTrainedModel, plan: Plan) -> BaseWithGraft:
    """A graft on the weights of `stock`, with random inserted values."""
    import torch

    record = BaseRecord(
        source=name,
        family=plan.shape.family.model_type,
        parameters=sum(p.numel() for p in stock.parameters()),
        dtype=str(stock.dtype).removeprefix("torch."),
        files={},
    )
    # No file exists, so there is no digest.
    inserted = InsertedRecord(sha256="")
    manifest = Manifest(base=record, insertions=[plan.config], inserted=inserted)
    tensors = {}
    for slot in plan.tensors:
        generator = torch.Generator(stock.device)
        generator.manual_seed(derive_seed("overhead", slot.name))
        noise = torch.randn(slot.shape, generator=generator, device=stock.device)
        tensors[slot.name] = 0.02 * noise + float(slot.role == "norm")
    return _assemble(name, stock, plan.shape, manifest, tensors)


def from_folder(folder: Path, *, dtype: torch.dtype | None, device: str) -> BaseWithGraft:
    """A grafted folder. Raises OtterError if it is not one, or if it is damaged."""
    from otter_cli.model.load import load_base
    from otter_cli.model.otter import read_inserted_tensors

    manifest = open_graft(folder)
    stock = load_base(folder, dtype=dtype).to(device).eval()
    shape = base_shape(stock.config.to_dict())
    tensors = read_inserted_tensors(folder, manifest, shape)
    stored = sum((folder / file).stat().st_size for file in inserted_files(folder))
    return _assemble(folder.resolve().name, stock, shape, manifest, tensors, stored)


def _assemble(
    name: str,
    stock: PreTrainedModel,
    shape: BaseShape,
    manifest: Manifest,
    tensors: dict[str, torch.Tensor],
    file_bytes: int | None = None,
) -> BaseWithGraft:
    from otter_cli.model.otter import OtterForCausalLM, assemble_graft

    base = copy_sharing_weights(stock)
    graft = assemble_graft(OtterForCausalLM, base, shape, manifest, tensors, dtype=stock.dtype)
    graft = graft.to(stock.device).eval()
    return BaseWithGraft(name, stock, shape, graft, manifest.plans(shape), file_bytes)


def copy_sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The same model on the same weights in memory, without shared hooks."""
    from torch import nn

    shared = {id(p): nn.Parameter(p.data) for p in model.parameters()}
    return copy.deepcopy(model, memo=shared)


def random_reward_model(stock: PreTrainedModel) -> PreTrainedModel:
    """A reward model of the base's shape, with random weights of its own."""
    from transformers import AutoModelForSequenceClassification

    return _random_model(stock, AutoModelForSequenceClassification)


def random_language_model(stock: PreTrainedModel) -> PreTrainedModel:
    """A language model of the base's shape, with random weights of its own."""
    from transformers import AutoModelForCausalLM

    return _random_model(stock, AutoModelForCausalLM)


def _random_model(stock: PreTrainedModel, kind: Any) -> PreTrainedModel:
    import torch

    with torch.device(stock.device):
        model: PreTrainedModel = kind.from_config(
            _one_label_config(stock), dtype=stock.dtype, trust_remote_code=False
        ).eval()
    return model


def lora_reward_model(
    stock: PreTrainedModel, rank: int, targets: str | list[str]
) -> PreTrainedModel:
    """A reward model on the base's weights in memory, with peft's adapters beside `targets`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            _one_label_config(stock), dtype=stock.dtype, trust_remote_code=False
        )
    setattr(model, model.base_model_prefix, copy_sharing_weights(stock).base_model)
    model.score = torch.nn.Linear(
        stock.config.hidden_size, 1, bias=False, dtype=stock.dtype, device=stock.device
    )
    # peft puts the adapters into `model` itself. The model that it returns is only a wrapper.
    get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=targets)
    )
    return model


def _one_label_config(stock: PreTrainedModel) -> Any:
    config = type(stock.config).from_dict(stock.config.to_dict())
    config.num_labels = 1
    return config


@dataclass(frozen=True)
class OverheadRun:
    """The models of a run with its settings and the rates of the machine."""

    models: BaseWithGraft
    settings: OverheadSettings
    rates: MachineRates
    pace: Pace = ALL_ROUNDS

    @property
    def synchronise(self) -> Callable[[], None]:
        return synchroniser(self.settings.device)

    @property
    def rounds(self) -> int:
        """The most rounds, where each contestant runs many passes in a round."""
        return max(3, self.settings.repeats // 10)

    def with_signals(self, *texts: str) -> BaseWithGraft:
        """The first insertion again, on the same weights, with other signals."""
        plan = self.models.plans[0]
        config = plan.config.model_copy(update={"signals": parse_signals(texts)})
        return graft_in_memory(self.models.name, self.models.stock, Plan(config, plan.shape))


def parse_signals(texts: Sequence[str]) -> tuple[SignalConfig, ...]:
    from otter_cli.signals.config import parse_signal

    return tuple(parse_signal(text) for text in texts)


SizedPart = Literal["FFN", "attention", "both"]  # what the parameters are spent on
SWEEP = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_SCALE_STEPS = 160


def plan_of_share(shape: BaseShape, parameters: int, share: float, spent: SizedPart) -> Plan:
    """The plan nearest to that share of the base's `parameters`.

    Within a tenth of the share, a plan over more layers is preferred to a nearer one.
    """

    def rank(plan: Plan) -> tuple[float, int, float]:
        error = abs(plan.parameters / (share * parameters) - 1)
        return max(0.1, round(error, 2)), -len(plan.config.layers), error

    return min(_candidate_plans(shape, spent), key=rank)


def _candidate_plans(shape: BaseShape, spent: SizedPart) -> Iterator[Plan]:
    """The base's proportions, scaled down to at most half, on its last layers or on all."""
    depths = sorted({shape.layers, max(1, shape.layers // 2), max(1, shape.layers // 4)})
    for step in range(1, _SCALE_STEPS + 1):
        # The steps are finer for small scales.
        scale = 0.5 * (step / _SCALE_STEPS) ** 2
        for depth in depths:
            config = resolve_config(
                shape,
                hidden=max(1, round(scale * shape.hidden)),
                heads=0 if spent == "FFN" else max(1, round(scale * shape.heads)),
                ffn=0 if spent == "attention" else max(1, round(scale * shape.ffn)),
                layers=tuple(range(shape.layers - depth, shape.layers)),
                # An embedding table alone would exceed the smallest shares.
                embedding="zeros",
                signals=parse_signals(["reward"]),
            )
            yield Plan(config, shape)
