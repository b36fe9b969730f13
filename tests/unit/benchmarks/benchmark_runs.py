"""Settings of small real runs, and the lines that they leave."""

from otter_cli.benchmarks.benchmark import BenchmarkSetting
from otter_cli.benchmarks.options import PromptFile
from otter_cli.benchmarks.prompts import load_prompts
from otter_cli.benchmarks.runner.run_benchmark import FinishedRun
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.decoding.sampling import Sampling
from otter_cli.scorers.load import LoadedGraft
from tests.support.benchmark_models import BenchmarkModels

Pair = tuple[LoadedGraft, LoadedGraft]


def setting(
    contestants: BenchmarkModels, grafts: Pair, sampling: Sampling, **shared: int
) -> BenchmarkSetting:
    prompts, record = load_prompts(
        PromptFile(prompts=contestants.prompts),
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    return BenchmarkSetting(prompts, record, sampling, **shared)


def greedy(contestants: BenchmarkModels, grafts: Pair) -> BenchmarkSetting:
    return setting(contestants, grafts, Sampling(max_new_tokens=12))


def samples(finished: FinishedRun) -> list[dict]:
    return list(read_jsonlines(finished.folder / "samples.jsonl"))
