"""Detectors: what reads a text token by token and says at each how likely it offends.

They stand where methods of generating stand, and continue a text by nothing: so a run of them
resumes, is timed and is compared as any other.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.models import Grafted, bytes_of, model_record
from otter_cli.benchmarks.settings import MethodRecord, ModelRecord
from otter_cli.core.errors import OtterError
from otter_cli.signals.finite import probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.decoding import Generation, Sampling

SCORE = "score"

# A text's tokens [1, n] to probabilities at each, [n].
Read = Callable[["Tensor"], "Tensor"]


def base_alone(graft: Grafted) -> Method:
    """The base reads, and nobody watches: what the others' time is held against."""
    decoder = _decoder(graft)

    def read(tokens: "Tensor") -> "Tensor":
        decoder(input_ids=tokens)
        return tokens.new_zeros(0)

    return _detector("base alone", [graft.record], {}, graft.base_bytes, read, graft.model)


def by_signal(label: str, graft: Grafted, signal: str) -> Method:
    """A class signal of a graft: the base's own pass, with the probability beside each token."""

    from otter_cli.decoding.positions import warn_once, warnings_of

    def read(tokens: "Tensor") -> "Tensor":
        out = graft.model(tokens, signals=(signal,), logits=False)
        return probabilities(out.signals[signal][0, :, 0])

    steering = {"detector": "signal", "signal": signal}
    method = _detector(label, [graft.record], steering, graft.bytes, read, graft.model)
    warnings = warnings_of(graft.model, signals=(signal,))
    warn_once(graft.model, warnings)
    return replace(method, warnings=tuple(warnings))


def by_probe(label: str, graft: Grafted, folder: Path, signal: str) -> Method:
    """A probe on the base that the graft has: its pass, and a readout of all layers. Raises
    OtterError for one of another base's shape, or of another signal."""
    from otter_cli.training.probe import load_probe

    probe, of = load_probe(folder, graft.model.base, graft.model.shape)
    if of.name != signal or of.kind != "classes":
        raise OtterError(
            f"{folder} was trained for {of.name!r}, of kind {of.kind}",
            hint=f"train one of {signal!r}: otter train OUT --recipe R --baseline probe --to DIR",
        )

    def read(tokens: "Tensor") -> "Tensor":
        return probabilities(probe(tokens, tokens.new_ones(tokens.shape))[0, :, 0])

    steering = {"detector": "probe", "reads": probe.reads}
    held = graft.base_bytes + bytes_of(probe.weights.values())
    models = [graft.record, model_record(folder, "probe")]
    return _detector(label, models, steering, held, read, graft.model)


def by_classifier(label: str, graft: Grafted, classifier: Any, record: ModelRecord) -> Method:
    """A separate classifier of every prefix: a second model, in one more pass over the text beside
    the base's, which whoever writes the text needs too."""
    decoder = _decoder(graft)

    def read(tokens: "Tensor") -> "Tensor":
        decoder(input_ids=tokens)
        state = classifier.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return probabilities(classifier.score(state)[0, :, 0])

    held = graft.base_bytes + bytes_of(classifier.parameters())
    steering = {"detector": "classifier"}
    models = [graft.record, record]
    return _detector(label, models, steering, held, read, classifier, separate=True)


def _decoder(graft: Grafted) -> Any:
    return graft.model.base.get_submodule(graft.model.shape.family.decoder)


def _detector(
    label: str, models: list[ModelRecord], steering: dict[str, Any], weights: int, read: Read,
    on: Any, *, separate: bool = False,
) -> Method:  # fmt: skip
    def call(texts: list[list[int]], sampling: "Sampling") -> "list[Generation]":
        return [_read(read, text, separate, on.device) for text in texts]

    return Method(label, MethodRecord(label=label, models=models, steering=steering), call, weights)


def _read(read: Read, text: list[int], separate: bool, device: Any) -> "Generation":
    import torch

    from otter_cli.decoding import Counters, Generation

    with torch.inference_mode():
        scores = read(torch.tensor([text], device=device)).tolist()
    passes = Counters(base_passes=1, external_passes=int(separate), tokens_fed=len(text))
    return Generation([], [], {SCORE: scores}, "length", passes)
