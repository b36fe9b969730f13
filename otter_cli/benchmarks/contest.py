"""What benchmarks of generation share: the insertion and its control on the same prompts, and how
strongly each pulls."""

from dataclasses import dataclass
from pathlib import Path

from otter_cli.benchmarks.benchmark import Setting
from otter_cli.benchmarks.method_specs import CANDIDATES, MethodSpec
from otter_cli.benchmarks.models import Grafted, load_pair
from otter_cli.benchmarks.names import PLAIN
from otter_cli.benchmarks.prompts import PromptFile, load_prompts
from otter_cli.decoding import Sampling

Pair = tuple[Grafted, Grafted]

INSERTION, HEAD, ARGS, LOOKUP = "insertion", "task-head", "args", "prompt-lookup"


@dataclass(frozen=True)
class Guidance:
    """How strongly each guide pulls: signals differ in scale, so each may have its own strength."""

    signal: str
    strength: float
    candidates: int = CANDIDATES
    head_strength: float | None = None
    args_strength: float | None = None
    # The insertion at more strengths: what more reward costs in log-probability.
    sweep: tuple[float, ...] = ()
    # Whether the signal has learnt to read the end of a text (a recipe's `eos`).
    end: bool = True

    def of(self, method: str) -> float:
        own = {HEAD: self.head_strength, ARGS: self.args_strength}.get(method)
        return self.strength if own is None else own


def prepare(
    folder: Path,
    task_head: Path,
    signal: str,
    file: PromptFile,
    sampling: Sampling,
    *,
    repeats: int = 1,
    batch: int = 1,
    together: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Pair, Setting]:
    """The insertion and its control, and the prompts that both get. Raises OtterError."""
    grafts = load_pair(folder, task_head, signal, device)
    prompts, record = load_prompts(
        file,
        grafts[0].tokenizer,
        positions=grafts[0].model.shape.max_positions,
        new_tokens=sampling.max_new_tokens,
    )
    return grafts, Setting(prompts, record, sampling, repeats, batch, seed, together)


def guided(grafts: Pair, guidance: Guidance) -> list[MethodSpec]:
    """Plain, then guided by the insertion's signal and by the task head's."""
    of = {
        INSERTION: ("insertion", grafts[0]),
        HEAD: ("task head only", grafts[1]),
    }
    guided = [
        MethodSpec(
            name,
            "value",
            {
                "strength": guidance.of(name),
                "candidates": guidance.candidates,
                "end": guidance.end,
            },
            label,
            graft,
        )
        for name, (label, graft) in of.items()
    ]
    return [MethodSpec(PLAIN, "plain"), *guided]
