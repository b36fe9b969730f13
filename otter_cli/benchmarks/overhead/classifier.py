"""Reward models as other methods have them: a whole model of its own, or LoRA on shared weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.overhead.subject import twin

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def separate(stock: PreTrainedModel) -> PreTrainedModel:
    """One of the base's shape, with random weights of its own."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device(stock.device):
        return AutoModelForSequenceClassification.from_config(
            _config(stock), dtype=stock.dtype
        ).eval()


def lora(stock: PreTrainedModel, rank: int, targets: str | list[str]) -> PreTrainedModel:
    """On the base's own weights in memory, with peft's adapters beside `targets`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(_config(stock), dtype=stock.dtype)
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
