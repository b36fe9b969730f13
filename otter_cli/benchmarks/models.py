"""Models that take part, loaded strictly and known by digest."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.settings import ModelRecord
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.insertion.manifest import Manifest

if TYPE_CHECKING:
    from otter_cli.model import OtterForCausalLM

_DECIDES = (".safetensors", ".json", ".model", ".txt")


@dataclass(frozen=True)
class Grafted:
    """A loaded graft, its base's tokenizer, and what it is."""

    model: "OtterForCausalLM"
    tokenizer: Any
    record: ModelRecord

    @property
    def base_bytes(self) -> int:
        return bytes_of(self.model.base.parameters())

    @property
    def bytes(self) -> int:
        return self.base_bytes + bytes_of(p for _, p in self.model.inserted_parameters())


def bytes_of(parameters: Iterable[Any]) -> int:
    """Bytes of torch parameters; tied ones are one, since each object is named once."""
    return sum(p.numel() * p.element_size() for p in parameters)


def load_pair(
    folder: Path, task_head: Path, signal: str, device: str = "cpu"
) -> tuple[Grafted, Grafted]:
    """The insertion and its control, on one base. Raises OtterError where they are not comparable,
    warns where `signal` was never trained."""
    graft, head = (load_graft(path, signal, device=device) for path in (folder, task_head))
    require_same_base(graft, head, task_head)
    if any(config.hidden for config in head.model.manifest.insertions):
        raise OtterError(
            f"{task_head} is no task head: it has a stream of its own",
            hint="make it by `otter train FOLDER --recipe R --baseline head --to DIR`",
        )
    return graft, head


def require_same_base(graft: Grafted, other: Grafted, path: Path) -> None:
    if graft.record.base != other.record.base:
        raise OtterError(
            f"{graft.record.name} and {path} are grafts of different bases",
            hint="methods are compared on one base: graft and train both on the same one",
        )


def load_graft(folder: Path, signal: str, *, device: str) -> Grafted:
    """A grafted folder with `signal`; every file of its base is checked against otter.json."""
    from transformers import AutoTokenizer

    from otter_cli.model import OtterForCausalLM
    from otter_cli.model.load import check_same_base

    manifest = Manifest.read(folder)
    check_same_base(folder, manifest)
    model = OtterForCausalLM.from_pretrained(folder, device=device)
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
        base=base_digest(manifest),
        weights=manifest.inserted.sha256,
    )
    return Grafted(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), record)


def base_digest(manifest: Manifest) -> str:
    """Of the base's weights and configuration, as grafted."""
    files = manifest.base.files.items()
    return sha256_json(
        {name: record.sha256 for name, record in files if name.endswith((".safetensors", ".json"))}
    )


def load_reward_model(folder: Path, *, device: str) -> "tuple[Any, Any, ModelRecord]":
    """A stock sequence classifier with one output, its tokenizer and record. Raises OtterError
    where any of its tensors would be made up."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from otter_cli.model.load import DTYPES

    # The file's dtype, since config.json's would win otherwise.
    dtype = DTYPES[Checkpoint.open(folder).dtype]
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise OtterError(
                f"{folder}: the reward model loads with {what.replace('_', ' ')}: "
                f"{', '.join(sorted(map(str, info[what]))[:3])}",
                hint="its score would be a random head's; train it first, or give the right folder",
            )
    if model.config.num_labels != 1:
        raise OtterError(
            f"{folder} has {model.config.num_labels} outputs, and a reward is one number",
            hint="give a model with num_labels 1",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), tokenizer, reward_record(folder)


def reward_record(folder: Path) -> ModelRecord:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _DECIDES)
    digest = sha256_json({path.name: sha256_file(path) for path in files})
    return ModelRecord(name=folder.resolve().name, kind="reward-model", weights=digest)
