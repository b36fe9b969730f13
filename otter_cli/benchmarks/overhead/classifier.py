"""Models that other methods have beside the base, whole or LoRA on its weights, at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead.subject import twin

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def separate(stock: PreTrainedModel) -> PreTrainedModel:
    """A reward model of the base's shape, with random weights of its own."""
    from transformers import AutoModelForSequenceClassification

    return _random(stock, AutoModelForSequenceClassification)


def expert(stock: PreTrainedModel) -> PreTrainedModel:
    """A language model of the base's shape, with random weights of its own."""
    from transformers import AutoModelForCausalLM

    return _random(stock, AutoModelForCausalLM)


def _random(stock: PreTrainedModel, kind: Any) -> PreTrainedModel:
    import torch

    with torch.device(stock.device):
        model: PreTrainedModel = kind.from_config(
            _config(stock), dtype=stock.dtype, trust_remote_code=False
        ).eval()
    return model


def lora(stock: PreTrainedModel, rank: int, targets: str | list[str]) -> PreTrainedModel:
    """On the base's own weights in memory, with peft's adapters beside `targets`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            _config(stock), dtype=stock.dtype, trust_remote_code=False
        )
    setattr(model, model.base_model_prefix, twin(stock).base_model)
    model.score = torch.nn.Linear(
        stock.config.hidden_size, 1, bias=False, dtype=stock.dtype, device=stock.device
    )
    # Its adapters are put into `model` itself; what it gives back only wraps it.
    get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=targets)
    )
    return model


def _config(stock: PreTrainedModel) -> Any:
    config = type(stock.config).from_dict(stock.config.to_dict())
    config.num_labels = 1
    return config
