"""The one loader of models that score: a score never comes from a tensor that was made up.

Training's teachers and labellers, its separate models, the benchmarks' methods, judges and scorers
load through these functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.source import find_base
from otter_cli.core.errors import OtterError
from otter_cli.model.pretrained import load_strictly, merge_adapter

if TYPE_CHECKING:
    import torch

_HINT = "its score would be a random head's; train it first, or give the right folder"


def scorer_folder(source: str | Path) -> Path:
    """A local folder, or the snapshot of `org/name@revision` of the hub. A revision must be given:
    a path that does not exist is then never taken for a repository. Raises OtterError."""
    text = str(source)
    if Path(text).is_dir():
        return Path(text)
    if "@" in text:
        return find_base(text).path
    raise OtterError(
        f"{text} is not a folder", hint="give a folder, or org/name@revision of the hub"
    )


def load_classifier(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    what: str = "the classifier",
) -> Any:
    """A stock sequence classifier, with its head. Raises OtterError."""
    model = load_strictly(
        scorer_folder(source),
        "AutoModelForSequenceClassification",
        what=what,
        dtype=dtype,
        hint=_HINT,
    )
    return model.to(device)


def load_reward_model(source: str | Path, *, device: str = "cpu") -> Any:
    """A stock sequence classifier with one output. Raises OtterError."""
    model = load_classifier(source, device=device, what="the reward model")
    if model.config.num_labels != 1:
        raise OtterError(
            f"{source} has {model.config.num_labels} outputs, and a reward is one number",
            hint="give a model with num_labels 1",
        )
    return model


def load_language_model(source: str | Path, *, device: str = "cpu") -> tuple[Any, Path]:
    """A stock language model, or a LoRA adapter merged into its base; and the folder of the model,
    which has the tokenizer. Raises OtterError."""
    folder = scorer_folder(source)
    base = folder
    if (folder / "adapter_config.json").is_file():
        base = scorer_folder(_base_of(folder))
    model = load_strictly(base, "AutoModelForCausalLM", what="the language model", hint=_HINT)
    if base != folder:
        model = merge_adapter(folder, model)
    return model.to(device), base


def load_encoder(source: str | Path, *, device: str = "cpu") -> Any:
    """An encoder; its pooler, which nothing here reads, may be missing. Raises OtterError."""
    model = load_strictly(
        scorer_folder(source),
        "AutoModel",
        what="the encoder",
        unread=("pooler.",),
        hint="its vectors would be made of random numbers; the folder is not whole",
    )
    return model.to(device)


def _base_of(folder: Path) -> str:
    """The model that a peft adapter is of, by its configuration."""
    from otter_cli.checkpoint.strict_json import read_object

    base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise OtterError(
            f"{folder}/adapter_config.json does not name the base of the adapter",
            hint="save the adapter again with peft, or set base_model_name_or_path",
        )
    return base
