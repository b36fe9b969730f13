"""Settings of small real runs, and the lines that they leave."""

from otter_cli.benchmarks.benchmark import Setting
from otter_cli.benchmarks.models import Grafted
from otter_cli.benchmarks.prompts import PromptFile, load_prompts
from otter_cli.benchmarks.run import Finished
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.decoding import Sampling
from tests.support.contestants import Contestants

Pair = tuple[Grafted, Grafted]


def setting(contestants: Contestants, grafts: Pair, sampling: Sampling, **shared: int) -> Setting:
    prompts, record = load_prompts(
        PromptFile(contestants.prompts),
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    return Setting(prompts, record, sampling, **shared)


def greedy(contestants: Contestants, grafts: Pair) -> Setting:
    return setting(contestants, grafts, Sampling(max_new_tokens=12))


def samples(finished: Finished) -> list[dict]:
    return list(read_jsonlines(finished.folder / "samples.jsonl"))
