"""The one strict loader of models that score.

Teachers and labellers of training, separate models, methods and judges of benchmarks all load
through these functions. A checkpoint with a missing tensor is refused. A loaded model has a
`ModelRecord`, which says what it is, not where it lies. Torch is imported late."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from otter_cli.checkpoint.base_source import find_base
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import base_changes
from otter_cli.core.strict_config import StrictRecord
from otter_cli.core.strict_files import read_json_object
from otter_cli.graft.manifest import Manifest

if TYPE_CHECKING:
    import torch

    from otter_cli.model.otter import OtterForCausalLM


_RANDOM_HEAD_HINT = "its score would be a random head's; train it first, or give the right folder"
_DIGESTED_SUFFIXES = (".safetensors", ".json", ".model", ".txt")
_OTTER_PREFIXES = ("otter.", "otter-")
_ADAPTER_CONFIG = "adapter_config.json"

ModelRole = Literal["reward-model", "language-model", "encoder", "probe"]


class ModelRecord(StrictRecord):
    """A model that took part. The name is for people; the digests identify it."""

    name: str
    kind: Literal["otter", "reward-model", "language-model", "encoder", "probe"]
    base: str | None = None
    weights: str


class LoadedModel(NamedTuple):
    """A model beside the base, its tokenizer, and its record."""

    model: Any
    tokenizer: Any
    record: ModelRecord


@dataclass(frozen=True)
class LoadedGraft:
    """A loaded graft, its base's tokenizer, and its record."""

    model: OtterForCausalLM
    tokenizer: Any
    record: ModelRecord

    @property
    def base_bytes(self) -> int:
        return parameter_bytes(self.model.base.parameters())

    @property
    def bytes(self) -> int:
        return self.base_bytes + parameter_bytes(p for _, p in self.model.inserted_parameters())


def scorer_folder(source: str | Path) -> Path:
    """A local folder, or the snapshot of `org/name@revision` of the hub. Without a revision a path
    that does not exist could be taken for a repository. Raises OtterError."""
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
    from otter_cli.model.load import load_strictly

    model = load_strictly(
        scorer_folder(source),
        "AutoModelForSequenceClassification",
        what=what,
        dtype=dtype,
        hint=_RANDOM_HEAD_HINT,
    )
    return model.to(device)


def load_reward_model(source: str | Path, *, device: str = "cpu") -> LoadedModel:
    """A stock sequence classifier with one output. Raises OtterError."""
    from otter_cli.model.load import load_tokenizer

    folder = scorer_folder(source)
    model = load_classifier(folder, device=device, what="the reward model")
    if model.config.num_labels != 1:
        raise OtterError(
            f"{source} has {model.config.num_labels} outputs, and a reward is one number",
            hint="give a model with num_labels 1",
        )
    return LoadedModel(model, load_tokenizer(folder), model_record(folder, "reward-model"))


def load_language_model(source: str | Path, *, device: str = "cpu") -> LoadedModel:
    """A stock language model, or a LoRA adapter merged into its base. Raises OtterError."""
    from otter_cli.model.load import load_strictly, load_tokenizer, merge_adapter

    folder = base = scorer_folder(source)
    if (folder / _ADAPTER_CONFIG).is_file():
        base = scorer_folder(_base_of_adapter(folder))
    model = load_strictly(
        base, "AutoModelForCausalLM", what="the language model", hint=_RANDOM_HEAD_HINT
    )
    record = model_record(base, "language-model")
    if base != folder:
        model = merge_adapter(folder, model)
        record = _adapter_record(folder, record)
    return LoadedModel(model.to(device), load_tokenizer(base), record)


def load_encoder(source: str | Path, *, device: str = "cpu") -> LoadedModel:
    """An encoder. Its pooler, which nothing here reads, may be missing. Raises OtterError."""
    from otter_cli.model.load import load_strictly, load_tokenizer

    folder = scorer_folder(source)
    model = load_strictly(
        folder,
        "AutoModel",
        what="the encoder",
        unread=("pooler.",),
        hint="its vectors would be made of random numbers; the folder is not whole",
    )
    return LoadedModel(model.to(device), load_tokenizer(folder), model_record(folder, "encoder"))


def load_graft(folder: Path, signal: str, *, device: str) -> LoadedGraft:
    """A grafted folder with `signal`. Every file of its base is compared with otter.json."""
    from otter_cli.model.load import load_tokenizer
    from otter_cli.model.otter import OtterForCausalLM

    model = OtterForCausalLM.from_pretrained(folder, device=device)
    manifest = model.manifest
    if signal not in model.signal_configs:
        raise OtterError(
            f"{folder} has no signal {signal!r}",
            hint=f"its signals: {', '.join(model.signal_configs) or 'none'}",
        )
    if signal not in manifest.training:
        warn(f"{folder}: signal {signal!r} is untrained, and its numbers mean nothing")
    record = ModelRecord(
        name=folder.resolve().name,
        kind="otter",
        base=base_digest(folder, manifest),
        weights=manifest.inserted.sha256,
    )
    return LoadedGraft(model, load_tokenizer(folder), record)


def require_same_base(graft: LoadedGraft, other: LoadedGraft, path: Path) -> None:
    if graft.record.base != other.record.base:
        raise OtterError(
            f"{graft.record.name} and {path} are grafts of different bases",
            hint="methods are compared on one base: graft and train both on the same one",
        )


def parameter_bytes(parameters: Iterable[Any]) -> int:
    """Bytes of torch parameters. Tied parameters are one object, and count once."""
    return sum(p.numel() * p.element_size() for p in parameters)


def base_digest(folder: Path, manifest: Manifest) -> str:
    """A digest of the base's weights and configuration as grafted, and of files that changed since
    and were accepted."""
    digests = {
        name: record.sha256
        for name, record in manifest.base.files.items()
        if name.endswith((".safetensors", ".json"))
    }
    changed = {Path(path).name: digest for path, digest in base_changes(folder).items()}
    return sha256_json({**digests, "changed": changed} if changed else digests)


def model_record(folder: Path, kind: ModelRole) -> ModelRecord:
    return ModelRecord(
        name=folder.resolve().name, kind=kind, weights=sha256_json(_file_digests(folder))
    )


def _adapter_record(folder: Path, base: ModelRecord) -> ModelRecord:
    """The digest is of the adapter and its base's weights, not of the base's path."""
    digests = _file_digests(folder)
    config = read_json_object(folder / _ADAPTER_CONFIG)
    digests[_ADAPTER_CONFIG] = sha256_json(config | {"base_model_name_or_path": base.weights})
    return ModelRecord(name=folder.resolve().name, kind=base.kind, weights=sha256_json(digests))


def _base_of_adapter(folder: Path) -> str:
    """The base that the configuration of a peft adapter names."""
    base = read_json_object(folder / _ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise OtterError(
            f"{folder}/{_ADAPTER_CONFIG} does not name the base of the adapter",
            hint="save the adapter again with peft, or set base_model_name_or_path",
        )
    return base


def _file_digests(folder: Path) -> dict[str, str]:
    """Digests of the files that decide a model's output. Files of otter, which have times and paths
    in them, do not."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _DIGESTED_SUFFIXES)
    return {
        path.name: sha256_file(path) for path in files if not path.name.startswith(_OTTER_PREFIXES)
    }
