"""Models that take part, loaded strictly and known by digest."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from otter_cli.benchmarks.settings import ModelRecord
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import base_changes
from otter_cli.insertion.manifest import Manifest

if TYPE_CHECKING:
    from otter_cli.model import OtterForCausalLM

Role = Literal["reward-model", "language-model", "encoder", "probe"]
_DECIDES = (".safetensors", ".json", ".model", ".txt")
_OURS = ("otter.", "otter-")


class Loaded(NamedTuple):
    """A model beside the base, its tokenizer, and what it is."""

    model: Any
    tokenizer: Any
    record: ModelRecord


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


class Models:
    """A run's graft with its signal, and whatever else its methods load: each folder once."""

    def __init__(self, graft: Grafted, signal: str) -> None:
        self.graft, self.signal = graft, signal
        self.device = str(graft.model.device)
        self._loaded: dict[tuple[str, Path], Any] = {}

    def grafted(self, graft: Grafted | Path, signal: str) -> Grafted:
        """Another graft of the same base. Raises OtterError for one of another base."""
        if isinstance(graft, Grafted):
            return graft
        other: Grafted = self._once(
            signal, graft, lambda: load_graft(graft, signal, device=self.device)
        )
        require_same_base(self.graft, other, graft)
        return other

    def require_signal(self, name: str) -> None:
        if name not in self.graft.model.signal_configs:
            raise OtterError(
                f"{self.graft.record.name} has no signal {name!r}",
                hint=f"its signals: {', '.join(self.graft.model.signal_configs)}",
            )

    def reward_model(self, folder: Path) -> Loaded:
        found: Loaded = self._once(
            "reward", folder, lambda: load_reward_model(folder, device=self.device)
        )
        return found

    def language_model(self, folder: Path) -> Loaded:
        found: Loaded = self._once(
            "language", folder, lambda: load_language_model(folder, device=self.device)
        )
        return found

    def _once(self, kind: str, folder: Path, load: Callable[[], Any]) -> Any:
        key = (kind, folder.resolve())
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]


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
    from otter_cli.model import OtterForCausalLM
    from otter_cli.model.pretrained import load_tokenizer

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
    return Grafted(model, load_tokenizer(folder), record)


def base_digest(folder: Path, manifest: Manifest) -> str:
    """Of the base's weights and configuration, as grafted; files that changed since, and were
    accepted, make it another."""
    files = manifest.base.files.items()
    digests = {
        name: record.sha256 for name, record in files if name.endswith((".safetensors", ".json"))
    }
    changed = {Path(path).name: digest for path, digest in base_changes(folder).items()}
    return sha256_json({**digests, "changed": changed} if changed else digests)


def load_reward_model(source: str | Path, *, device: str) -> Loaded:
    """A stock sequence classifier with one output. Raises OtterError where any of its tensors would
    be made up."""
    from otter_cli.model.pretrained import load_tokenizer
    from otter_cli.scorers import load

    folder = load.scorer_folder(source)
    model = load.load_reward_model(folder, device=device)
    return Loaded(model, load_tokenizer(folder), model_record(folder, "reward-model"))


def load_language_model(source: str | Path, *, device: str) -> Loaded:
    """A stock language model, or a LoRA adapter of one, merged into it. Raises OtterError."""
    from otter_cli.model.pretrained import load_tokenizer
    from otter_cli.scorers import load

    folder = load.scorer_folder(source)
    model, base = load.load_language_model(folder, device=device)
    record = model_record(base, "language-model")
    if base != folder:
        record = _adapter_record(folder, record)
    return Loaded(model, load_tokenizer(base), record)


def model_record(folder: Path, kind: Role) -> ModelRecord:
    return ModelRecord(name=folder.resolve().name, kind=kind, weights=sha256_json(_digests(folder)))


def _adapter_record(folder: Path, base: ModelRecord) -> ModelRecord:
    """By what its base is, not by where it lies."""
    digests = _digests(folder)
    config = read_object(folder / "adapter_config.json")
    digests["adapter_config.json"] = sha256_json(config | {"base_model_name_or_path": base.weights})
    return ModelRecord(name=folder.resolve().name, kind=base.kind, weights=sha256_json(digests))


def _digests(folder: Path) -> dict[str, str]:
    """Of the files that decide what a folder says: ours, with times and paths, decide nothing."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _DECIDES)
    return {path.name: sha256_file(path) for path in files if not path.name.startswith(_OURS)}
