"""Detectors: methods that read a text and give, at each token, the probability that it offends.

They take the place of generating methods and add nothing to the text. A run of them resumes, is
timed and is compared like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.records import MethodRecord
from otter_cli.core.errors import OtterError
from otter_cli.scorers.load import LoadedGraft, ModelRecord, model_record, parameter_bytes
from otter_cli.signals.finite import class_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling


DETECTOR_SIGNAL = "score"

# A text's tokens [1, n] to probabilities at each, [n].
ReadFunction = Callable[["Tensor"], "Tensor"]


def base_detector(graft: LoadedGraft) -> Method:
    """The base alone, without a monitor: the reference for time."""
    decoder = _decoder(graft)

    def read(tokens: "Tensor") -> "Tensor":
        decoder(input_ids=tokens)
        return tokens.new_zeros(0)

    return _detector("base alone", [graft.record], {}, graft.base_bytes, read, graft.model)


def signal_detector(label: str, graft: LoadedGraft, signal: str) -> Method:
    """A class signal of a graft: one pass of the base, with the probability at each token."""
    from otter_cli.decoding.request_checks import request_warnings, warn_once

    def read(tokens: "Tensor") -> "Tensor":
        out = graft.model(tokens, signals=(signal,), logits=False)
        return class_probabilities(out.signals[signal][0, :, 0])

    steering = {"detector": "signal", "signal": signal}
    warnings = tuple(request_warnings(graft.model, signals=(signal,)))
    warn_once(graft.model, warnings)
    return _detector(
        label, [graft.record], steering, graft.bytes, read, graft.model, warnings=warnings
    )


def probe_detector(label: str, graft: LoadedGraft, folder: Path, signal: str) -> Method:
    """A probe on the graft's base: a readout of all layers, in the base's pass. Raises OtterError
    for a probe of another base's shape, or of another signal."""
    from otter_cli.training.baselines.readouts import load_probe

    probe, trained = load_probe(folder, graft.model.base, graft.model.shape)
    if trained.name != signal or trained.kind != "classes":
        raise OtterError(
            f"{folder} was trained for {trained.name!r}, of kind {trained.kind}",
            hint=f"train one of {signal!r}: otter train OUT --recipe R --baseline probe --to DIR",
        )

    def read(tokens: "Tensor") -> "Tensor":
        return class_probabilities(probe(tokens, tokens.new_ones(tokens.shape))[0, :, 0])

    steering = {"detector": "probe", "readout": probe.name, "reads": probe.reads}
    weights = graft.base_bytes + parameter_bytes(probe.weights.values())
    models = [graft.record, model_record(folder, "probe")]
    return _detector(label, models, steering, weights, read, graft.model)


def classifier_detector(
    label: str, graft: LoadedGraft, classifier: Any, record: ModelRecord
) -> Method:
    """A separate classifier of every prefix. It is a second model with its own pass; the base's
    pass counts too, because the text needs it."""
    decoder = _decoder(graft)

    def read(tokens: "Tensor") -> "Tensor":
        decoder(input_ids=tokens)
        state = classifier.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return class_probabilities(classifier.score(state)[0, :, 0])

    weights = graft.base_bytes + parameter_bytes(classifier.parameters())
    models = [graft.record, record]
    return _detector(
        label, models, {"detector": "classifier"}, weights, read, classifier, external_passes=1
    )


def _decoder(graft: LoadedGraft) -> Any:
    return graft.model.base.get_submodule(graft.model.shape.family.decoder)


def _detector(
    label: str,
    models: list[ModelRecord],
    steering: dict[str, Any],
    weights: int,
    read: ReadFunction,
    model: Any,
    *,
    external_passes: int = 0,
    warnings: tuple[str, ...] = (),
) -> Method:
    """`model`: the one whose device the tokens go to."""

    def detect(text: list[int]) -> "Generation":
        import torch

        from otter_cli.decoding.results import Generation, GenerationCounters

        with torch.inference_mode():
            scores = read(torch.tensor([text], device=model.device)).tolist()
        passes = GenerationCounters(
            base_passes=1, external_passes=external_passes, tokens_fed=len(text)
        )
        return Generation([], [], {DETECTOR_SIGNAL: scores}, "length", passes)

    def generate(texts: list[list[int]], sampling: "Sampling") -> "list[Generation]":
        return [detect(text) for text in texts]

    record = MethodRecord(label=label, models=models, steering=steering)
    return Method(record, generate, weights, warnings=warnings)
