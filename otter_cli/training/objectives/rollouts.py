"""Values by rollouts: the target of a state is the mean label of the base's own continuations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Counts, Interval, interval, ratio
from otter_cli.data.batches import Positions
from otter_cli.data.tables import TableLike, find_data
from otter_cli.data.texts import LabelledText, read_texts
from otter_cli.graft.manifest import TrainedPositions
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.labelled import ValueLoss, correlation_or_zero, value_errors
from otter_cli.training.objectives.objective import (
    Objective,
    Outcomes,
    ReadSignal,
    TextSource,
    read_selected,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, StateDataset
    from otter_cli.training.objectives.continuations import RolloutSettings


class Rollouts(Objective):
    """The target of a state is the mean label of `samples` continuations of `tokens` tokens, drawn
    from the base at `temperature`. No token needs a label (docs/method.md, "Objectives").

    `labeller`: the folder of a Detoxify checkpoint, a classifier, a reward model or a trained
    graft; `label`: which of its numbers. It reads the whole text or the continuation alone; with
    `eos` the texts have ended. `seed` draws `states` positions of each text, and the continuations
    of each state by itself: targets do not depend on an order, and are computed once.
    """

    kinds: ClassVar[tuple[str, ...]] = ("value",)

    objective: Literal["rollouts"] = "rollouts"
    train: TextSource
    test: TextSource | None = None
    labeller: str
    label: str | None = None
    reads: Literal["text", "continuation"] = "text"
    states: PositiveInt = 2
    samples: PositiveInt = 8
    tokens: PositiveInt = 20
    temperature: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    loss_of: ValueLoss = "squared"

    @property
    def trained_positions(self) -> TrainedPositions:
        return "drawn"

    def check(self, signal: SignalConfig) -> None:
        super().check(signal)
        find_data(self.labeller)
        if signal.size != 1:
            raise OtterError(
                f"signal {signal.name!r} has {signal.size} attributes; a labeller gives one number",
                hint="graft one signal for each attribute, with rollouts of its own",
            )

    def read_rows(
        self, source: TextSource, table: TableLike, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        texts = read_texts(table, column=source.text, prompt=source.prompt)
        return [LabelledText(text, ()) for text in texts]

    def encode(self, rows: Sequence[LabelledText], tokenizer: Any, max_length: int) -> StateDataset:
        from otter_cli.data.datasets import StateDataset
        from otter_cli.data.encoding import Encoder

        # A long text keeps its beginning, since its states are those of a text being written.
        encoder = Encoder(tokenizer, max_length, eos=False, keep="start")
        return StateDataset([row.text for row in rows], encoder, self.states, self.seed)

    def prepare_targets(self, datasets: Sequence[Any], folder: Path, device: str) -> dict[str, Any]:
        """Raises OtterError for an unsuitable labeller, and for states that are too long."""
        from otter_cli.scorers.text_scorer import check_reads_dialogues, load_labeller
        from otter_cli.training.objectives.continuations import label_states

        self._require_room(datasets, folder)
        labeller = find_data(self.labeller)
        chat = _all_dialogues(datasets)
        if chat and self.reads == "text":
            check_reads_dialogues(labeller, folder)
        settings = self._settings(folder, labeller, chat)
        labels = label_states(
            [prefix for data in datasets for prefix in data.prefixes()],
            settings,
            folder,
            folder / "training" / "rollouts",
            lambda: load_labeller(labeller, self.label, eos=self.eos, device=device),
            device,
        )
        values = np.array(list(labels.values()))
        if self.loss_of == "cross-entropy" and not (values.min() >= 0 and values.max() <= 1):
            raise OtterError(
                f"{self.labeller} gives {values.min():.3g} to {values.max():.3g}, and "
                "cross-entropy needs 0 to 1",
                hint="loss_of: squared, or a labeller that gives probabilities",
            )
        means = {key: float(np.mean(samples)) for key, samples in labels.items()}
        for data in datasets:
            data.set_targets(means)
        for data in datasets[1:]:
            _check_targets_vary(data, self.labeller)
        return {"rollouts": {"name": settings.name, **_label_summary(values)}}

    def _settings(self, folder: Path, labeller: Path, chat: bool) -> RolloutSettings:
        from otter_cli.graft.manifest import Manifest
        from otter_cli.scorers.detoxify import files_digest
        from otter_cli.training.objectives.continuations import RolloutSettings

        base = {name: file.sha256 for name, file in Manifest.read(folder).base.identity().items()}
        return RolloutSettings(
            base=base,
            labeller=files_digest(labeller),
            chat=chat,
            **self.model_dump(
                include={"label", "eos", "reads", "samples", "tokens", "temperature", "seed"}
            ),
        )

    def _require_room(self, datasets: Sequence[StateDataset], folder: Path) -> None:
        from otter_cli.checkpoint.folder import Checkpoint
        from otter_cli.families.shape import base_shape

        room = base_shape(Checkpoint.open(folder).config).max_positions
        longest = max(max(data.lengths) for data in datasets)
        if longest + self.tokens > room:
            raise OtterError(
                f"a state of {longest} tokens with {self.tokens} more is longer than the base's "
                f"{room} positions",
                hint=f"max_length: {room - self.tokens}, or fewer tokens",
            )

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at, label = _state_positions(batch), batch.labels[_is_state(batch)]
        each = value_errors(self.loss_of, read_selected(read, batch, at), label)
        # Texts weigh the same, whatever their number of states.
        return (each / _is_state(batch).sum(1)[at[0]]).sum() / len(batch.last)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        score = read(batch, _state_positions(batch)).float()
        value = batch.labels.new_zeros(batch.labels.shape)
        value[_is_state(batch)] = score if self.loss_of == "squared" else score.sigmoid()
        return {"value": value, "label": batch.labels, "is_state": _is_state(batch)}

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        """Over states, with intervals by resampled texts, since a text's states are dependent."""
        value, label, is_state = (outcomes[name] for name in ("value", "label", "is_state"))
        texts, squares = len(value), ((value - label) ** 2 * is_state).sum(1)
        over_states = correlation_or_zero(
            value[is_state].astype(float), label[is_state].astype(float)
        )
        text_of_state = is_state.nonzero()[0]

        def over_texts(counts: Counts) -> np.ndarray:
            return over_states(counts[:, text_of_state])

        what = "the correlation of value and label"
        return {
            "squared_error": interval(ratio(squares, is_state.sum(1)), texts),
            "correlation": interval(over_texts, texts, what=what),
        }


def _check_targets_vary(data: StateDataset, labeller: str) -> None:
    """Raises OtterError where all test states have one target: correlation is undefined there."""
    targets = [target for states in data.targets for target in states]
    if len(set(targets)) < 2:
        raise OtterError(
            f"{labeller} gives {targets[0]:g} for all {len(targets)} states to be tested, and the "
            "correlation of value and label needs two different labels",
            hint="give more texts or samples, or another labeller",
        )


def _all_dialogues(datasets: Sequence[StateDataset]) -> bool:
    """Whether the texts are dialogues. Raises OtterError where only some are."""
    kinds = {data.chat for data in datasets}
    if len(kinds) > 1:
        raise OtterError(
            "the training texts are dialogues and the test texts are not, or the reverse",
            hint="give both as messages, or neither",
        )
    return kinds.pop()


def _is_state(batch: Batch) -> Tensor:
    assert batch.state_positions is not None
    return batch.state_positions >= 0


def _state_positions(batch: Batch) -> Positions:
    assert batch.state_positions is not None
    rows, columns = _is_state(batch).nonzero(as_tuple=True)
    return rows, batch.state_positions[rows, columns]


def _label_summary(labels: np.ndarray) -> dict[str, float]:
    """Statistics of labels [states, samples]. `noise`: the mean squared error that no value can
    fall below, since a target is a mean of samples; it needs two samples."""
    states, samples = labels.shape
    summary = {"states": states, "mean": labels.mean(), "variance": labels.mean(1).var()}
    if samples > 1 and np.isfinite(noise := labels.var(1, ddof=1).mean() / samples):
        summary["noise"] = noise
    return {name: value if name == "states" else float(value) for name, value in summary.items()}
