"""Detectors: methods that read a text and give, at each token, the probability that it offends.

They take the place of generating methods and add nothing to the text, so a run of them resumes,
is timed and is compared like any other."""

from collections.abc import Callable
from dataclasses import replace
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
    """The base reads, and nobody watches: what the others' time is held against."""
    decoder = _decoder(graft)

    def read(tokens: "Tensor") -> "Tensor":
        decoder(input_ids=tokens)
        return tokens.new_zeros(0)

    return _detector("base alone", [graft.record], {}, graft.base_bytes, read, graft.model)


def signal_detector(label: str, graft: LoadedGraft, signal: str) -> Method:
    """A class signal of a graft: the base's own pass, with the probability beside each token."""

    from otter_cli.decoding.request_checks import request_warnings, warn_once

    def read(tokens: "Tensor") -> "Tensor":
        out = graft.model(tokens, signals=(signal,), logits=False)
        return class_probabilities(out.signals[signal][0, :, 0])

    steering = {"detector": "signal", "signal": signal}
    method = _detector(label, [graft.record], steering, graft.bytes, read, graft.model)
    warnings = request_warnings(graft.model, signals=(signal,))
    warn_once(graft.model, warnings)
    return replace(method, warnings=tuple(warnings))


def probe_detector(label: str, graft: LoadedGraft, folder: Path, signal: str) -> Method:
    """A probe on the base that the graft has: its pass, and a readout of all layers. Raises
    OtterError for one of another base's shape, or of another signal."""
    from otter_cli.training.baselines.readouts import load_probe

    probe, of = load_probe(folder, graft.model.base, graft.model.shape)
    if of.name != signal or of.kind != "classes":
        raise OtterError(
            f"{folder} was trained for {of.name!r}, of kind {of.kind}",
            hint=f"train one of {signal!r}: otter train OUT --recipe R --baseline probe --to DIR",
        )

    def read(tokens: "Tensor") -> "Tensor":
        return class_probabilities(probe(tokens, tokens.new_ones(tokens.shape))[0, :, 0])

    steering = {"detector": "probe", "reads": probe.reads}
    held = graft.base_bytes + parameter_bytes(probe.weights.values())
    models = [graft.record, model_record(folder, "probe")]
    return _detector(label, models, steering, held, read, graft.model)


def classifier_detector(
    label: str, graft: LoadedGraft, classifier: Any, record: ModelRecord
) -> Method:
    """A separate classifier of every prefix: a second model, in one more pass over the text beside
    the base's, which whoever writes the text needs too."""
    decoder = _decoder(graft)

    def read(tokens: "Tensor") -> "Tensor":
        decoder(input_ids=tokens)
        state = classifier.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return class_probabilities(classifier.score(state)[0, :, 0])

    held = graft.base_bytes + parameter_bytes(classifier.parameters())
    steering = {"detector": "classifier"}
    models = [graft.record, record]
    return _detector(label, models, steering, held, read, classifier, separate=True)


def _decoder(graft: LoadedGraft) -> Any:
    return graft.model.base.get_submodule(graft.model.shape.family.decoder)


def _detector(
    label: str,
    models: list[ModelRecord],
    steering: dict[str, Any],
    weights: int,
    read: ReadFunction,
    on: Any,
    *,
    separate: bool = False,
) -> Method:
    def call(texts: list[list[int]], sampling: "Sampling") -> "list[Generation]":
        return [_detect(read, text, separate, on.device) for text in texts]

    return Method(label, MethodRecord(label=label, models=models, steering=steering), call, weights)


def _detect(read: ReadFunction, text: list[int], separate: bool, device: Any) -> "Generation":
    import torch

    from otter_cli.decoding.results import Generation, GenerationCounters

    with torch.inference_mode():
        scores = read(torch.tensor([text], device=device)).tolist()
    passes = GenerationCounters(base_passes=1, external_passes=int(separate), tokens_fed=len(text))
    return Generation([], [], {DETECTOR_SIGNAL: scores}, "length", passes)
