"""What a user asks a benchmark for, from a command line or from a cell of a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from otter_cli.core.errors import OtterError
from otter_cli.training.section import Section

if TYPE_CHECKING:
    from otter_cli.benchmarks.benchmark import Benchmark, Setting
    from otter_cli.benchmarks.contest import Guidance, Pair
    from otter_cli.benchmarks.method_specs import MethodSpec
    from otter_cli.decoding import Sampling


class Request(Section):
    """Options that all of them share; `task_head` is the control on the same base. `chat`: prompts
    go into the base's chat template."""

    folder: Path
    prompts: Path
    task_head: Path
    signal: str
    column: str | None = None
    template: str = "{text}"
    chat: bool = False
    limit: PositiveInt | None = None
    limit_seed: NonNegativeInt = 0
    method: tuple[str, ...] = ()
    samples: int = 1
    batch: int = 1
    together: PositiveInt = 1
    temperature: float = 0.0
    max_new_tokens: int = 64
    seed: int = 0
    device: str = "cpu"

    def benchmark(self) -> Benchmark:
        """Loads what it needs. Raises OtterError."""
        raise NotImplementedError

    def more(self) -> list[MethodSpec]:
        from otter_cli.benchmarks.method_specs import parse_methods

        return parse_methods(self.method)

    def prepare(self, sampling: Sampling) -> tuple[Pair, Setting]:
        from otter_cli.benchmarks.contest import prepare
        from otter_cli.benchmarks.prompts import PromptFile

        return prepare(
            self.folder,
            self.task_head,
            self.signal,
            PromptFile(
                self.prompts, self.column, self.template, self.limit, self.limit_seed, self.chat
            ),
            sampling,
            repeats=self.samples,
            batch=self.batch,
            together=self.together,
            seed=self.seed,
            device=self.device,
        )


class GuidedRequest(Request):
    """Those that steer: each guide may pull with a strength of its own. `end`: whether the signal
    has learnt to read the end of a text."""

    strength: float
    head_strength: float | None = None
    args_strength: float | None = None
    candidates: int = 10
    sweep: tuple[float, ...] = ()
    end: bool = True

    def guidance(self) -> Guidance:
        from otter_cli.benchmarks.contest import Guidance

        return Guidance(
            self.signal,
            self.strength,
            self.candidates,
            self.head_strength,
            self.args_strength,
            self.sweep,
            self.end,
        )


class PreferenceRequest(GuidedRequest):
    signal: str = "reward"
    strength: float = 1.5
    batch: int = 8
    reward_model: Path
    gold: Path
    encoder: Path | None = None

    def benchmark(self) -> Benchmark:
        from otter_cli.benchmarks.assemble import preference
        from otter_cli.decoding import Sampling

        # Plain decoding draws from as many candidates as a guide does.
        top_k = self.candidates if self.temperature else 0
        grafts, setting = self.prepare(Sampling(self.max_new_tokens, self.temperature, top_k=top_k))
        return preference(
            grafts,
            setting,
            self.guidance(),
            reward_model=self.reward_model,
            gold=self.gold,
            encoder=self.encoder,
            more=self.more(),
        )


class DetoxRequest(GuidedRequest):
    signal: str = "toxicity"
    strength: float = -4.0
    candidates: int = 20
    samples: int = 25
    batch: int = 25
    temperature: float = 1.0
    top_p: float = 0.9
    max_new_tokens: int = 20
    detoxify: Path

    def benchmark(self) -> Benchmark:
        from otter_cli.benchmarks.assemble import detox
        from otter_cli.decoding import Sampling

        # Else fewer candidates, and not the guide, would make the difference to plain decoding.
        sampling = Sampling(
            self.max_new_tokens, self.temperature, top_k=self.candidates, top_p=self.top_p
        )
        grafts, setting = self.prepare(sampling)
        return detox(grafts, setting, self.guidance(), detoxify=self.detoxify, more=self.more())


class SpeedupRequest(Request):
    """A batch holds copies of one prompt."""

    signal: str = "future"

    def benchmark(self) -> Benchmark:
        from otter_cli.benchmarks.assemble import speedup
        from otter_cli.decoding import Sampling

        whole = self.model_copy(update={"samples": max(self.samples, self.batch)})
        grafts, setting = whole.prepare(Sampling(self.max_new_tokens, self.temperature))
        return speedup(grafts, setting, signal=self.signal, more=self.more())


class DetectionRequest(Section):
    """Texts of either a training `recipe`'s held-out rows or of `pairs`; each `monitor` is a
    NAME=FOLDER."""

    folder: Path
    recipe: Path | None = None
    pairs: Path | None = None
    data: Path | None = None
    limit: PositiveInt | None = None
    limit_seed: NonNegativeInt = 0
    signal: str = "toxicity"
    monitor: tuple[str, ...] = ()
    classifier: Path | None = None
    device: str = "cpu"

    def benchmark(self) -> Benchmark:
        from otter_cli.benchmarks.assemble_detection import detection, texts_of

        monitors = dict(map(_named, self.monitor))
        return detection(
            self.folder,
            texts_of(self.recipe, self.pairs, self.data, self.signal, self.folder),
            self.signal,
            limit=self.limit,
            limit_seed=self.limit_seed,
            monitors=monitors,
            classifier=self.classifier,
            device=self.device,
        )


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise OtterError(f"--monitor {text!r} is no NAME=FOLDER", hint="for example head=head-only")
    return name, Path(folder)


REQUESTS: dict[str, type[Request | DetectionRequest]] = {
    "preference": PreferenceRequest,
    "detox": DetoxRequest,
    "detection": DetectionRequest,
    "speedup": SpeedupRequest,
}
