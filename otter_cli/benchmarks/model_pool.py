"""The models of one run: its graft with a signal, and whatever else its methods load.

Each folder is loaded once. Grafts that are compared must be grafts of the same base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.scorers.load import (
    LoadedGraft,
    LoadedModel,
    load_graft,
    load_language_model,
    load_reward_model,
    require_same_base,
)


class ModelPool:
    """A run's graft with its signal, and other models, each folder loaded once."""

    def __init__(self, graft: LoadedGraft, signal: str) -> None:
        self.graft, self.signal = graft, signal
        self.device = str(graft.model.device)
        self._loaded: dict[tuple[str, Path], Any] = {}

    def require_signal(self, name: str) -> None:
        if name not in self.graft.model.signal_configs:
            raise OtterError(
                f"{self.graft.record.name} has no signal {name!r}",
                hint=f"its signals: {', '.join(self.graft.model.signal_configs)}",
            )

    def grafted(self, graft: LoadedGraft | Path, signal: str) -> LoadedGraft:
        """Another graft of the same base. Raises OtterError for one of another base."""
        if isinstance(graft, LoadedGraft):
            return graft
        other: LoadedGraft = self._once(signal, graft, load_graft, signal)
        require_same_base(self.graft, other, graft)
        return other

    def reward_model(self, folder: Path) -> LoadedModel:
        loaded: LoadedModel = self._once("reward", folder, load_reward_model)
        return loaded

    def language_model(self, folder: Path) -> LoadedModel:
        loaded: LoadedModel = self._once("language", folder, load_language_model)
        return loaded

    def _once(self, kind: str, folder: Path, load: Callable[..., Any], *arguments: Any) -> Any:
        key = (kind, folder.resolve())
        if key not in self._loaded:
            self._loaded[key] = load(folder, *arguments, device=self.device)
        return self._loaded[key]


def load_graft_and_task_head(
    folder: Path, task_head: Path | None, signal: str, device: str = "cpu"
) -> tuple[LoadedGraft, LoadedGraft | None]:
    """A graft, and its task-head control on the same base if there is one. Raises OtterError where
    they are not comparable; warns where `signal` was never trained."""
    graft = load_graft(folder, signal, device=device)
    if task_head is None:
        return graft, None
    head = load_graft(task_head, signal, device=device)
    require_same_base(graft, head, task_head)
    if any(config.hidden for config in head.model.manifest.insertions):
        raise OtterError(
            f"{task_head} is no task head: it has a stream of its own",
            hint=f"make it by `{baseline_command(folder, 'head')}`",
        )
    return graft, head


def baseline_command(folder: Path, baseline: str) -> str:
    """The line that trains a baseline on the data of a graft."""
    return f"otter train {folder} --recipe RECIPE --baseline {baseline} --to {folder}-{baseline}"
