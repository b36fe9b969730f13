"""The options of each benchmark, from a command line or from a cell of a matrix.

One strict model per benchmark. `benchmark()` loads the models and returns the benchmark to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictConfig

if TYPE_CHECKING:
    from otter_cli.benchmarks.benchmark import Benchmark, BenchmarkSetting
    from otter_cli.benchmarks.methods.specs import MethodSpec
    from otter_cli.benchmarks.tasks.assemble import GraftAndTaskHead, Guidance
    from otter_cli.decoding.sampling import Sampling


class BenchmarkOptions(StrictConfig):
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
        from otter_cli.benchmarks.methods.specs import parse_methods

        return parse_methods(self.method)

    def prepare(self, sampling: Sampling) -> tuple[GraftAndTaskHead, BenchmarkSetting]:
        from otter_cli.benchmarks.prompts import PromptFile
        from otter_cli.benchmarks.tasks.assemble import load_setting

        return load_setting(
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


class GuidedOptions(BenchmarkOptions):
    """Those that steer: each guide may pull with a strength of its own. `end`: whether the signal
    has learnt to read the end of a text."""

    strength: float
    head_strength: float | None = None
    args_strength: float | None = None
    candidates: int = 10
    sweep: tuple[float, ...] = ()
    end: bool = True

    def guidance(self) -> Guidance:
        from otter_cli.benchmarks.tasks.assemble import Guidance

        return Guidance(
            self.signal,
            self.strength,
            self.candidates,
            self.head_strength,
            self.args_strength,
            self.sweep,
            self.end,
        )


class PreferenceOptions(GuidedOptions):
    signal: str = "reward"
    strength: float = 1.5
    batch: int = 8
    reward_model: Path
    gold: Path
    encoder: Path | None = None

    def benchmark(self) -> Benchmark:
        from otter_cli.benchmarks.tasks.assemble import assemble_preference
        from otter_cli.decoding.sampling import Sampling

        # Plain decoding draws from as many candidates as a guide does.
        top_k = self.candidates if self.temperature else 0
        grafts, setting = self.prepare(Sampling(self.max_new_tokens, self.temperature, top_k=top_k))
        return assemble_preference(
            grafts,
            setting,
            self.guidance(),
            reward_model=self.reward_model,
            gold=self.gold,
            encoder=self.encoder,
            more=self.more(),
        )


class DetoxOptions(GuidedOptions):
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
        from otter_cli.benchmarks.tasks.assemble import assemble_detox
        from otter_cli.decoding.sampling import Sampling

        # Else fewer candidates, and not the guide, would make the difference to plain decoding.
        sampling = Sampling(
            self.max_new_tokens, self.temperature, top_k=self.candidates, top_p=self.top_p
        )
        grafts, setting = self.prepare(sampling)
        return assemble_detox(
            grafts, setting, self.guidance(), detoxify=self.detoxify, more=self.more()
        )


class SpeedupOptions(BenchmarkOptions):
    """A batch holds copies of one prompt."""

    signal: str = "future"

    def benchmark(self) -> Benchmark:
        from otter_cli.benchmarks.tasks.assemble import assemble_speedup
        from otter_cli.decoding.sampling import Sampling

        whole = self.model_copy(update={"samples": max(self.samples, self.batch)})
        grafts, setting = whole.prepare(Sampling(self.max_new_tokens, self.temperature))
        return assemble_speedup(grafts, setting, signal=self.signal, more=self.more())


class DetectionOptions(StrictConfig):
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
        from otter_cli.benchmarks.tasks.assemble import assemble_detection
        from otter_cli.benchmarks.tasks.detection import load_monitored_texts

        monitors = dict(map(_name_and_folder, self.monitor))
        return assemble_detection(
            self.folder,
            load_monitored_texts(self.recipe, self.pairs, self.data, self.signal, self.folder),
            self.signal,
            limit=self.limit,
            limit_seed=self.limit_seed,
            monitors=monitors,
            classifier=self.classifier,
            device=self.device,
        )


def _name_and_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise OtterError(f"--monitor {text!r} is no NAME=FOLDER", hint="for example head=head-only")
    return name, Path(folder)


OPTIONS: dict[str, type[BenchmarkOptions | DetectionOptions]] = {
    "preference": PreferenceOptions,
    "detox": DetoxOptions,
    "detection": DetectionOptions,
    "speedup": SpeedupOptions,
}
