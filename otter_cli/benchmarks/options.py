"""The options of each benchmark, declared once, as pydantic models.

A command line, a cell of a matrix and the demo build the same models; `tasks.assemble` turns one
into a benchmark. A field with typer's annotation is an option of `otter bench` (see
`cli.options`), with its help and panel; a field without one is a key of recipes alone.
Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import typer
from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from otter_cli.core.dtype_names import DTYPE_HELP
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import DtypeName, StrictConfig


def _option(help: str, panel: str) -> Any:
    return typer.Option(help=help, rich_help_panel=panel)


# Options that several benchmarks have.
Folder = Annotated[Path, typer.Argument(help="the grafted folder")]
Template = Annotated[str, _option("text around each prompt, which replaces {text}", "Prompts")]
Chat = Annotated[bool, _option("write prompts by the base's chat template", "Prompts")]
Limit = Annotated[
    PositiveInt | None, _option("at most this many prompts, drawn across categories", "Prompts")
]
LimitSeed = Annotated[
    NonNegativeInt, _option("which prompts --limit draws; independent of --seed", "Prompts")
]
Signal = Annotated[str, _option("name of the signal, the same in all folders", "Methods")]
Strength = Annotated[float, _option("weight of the guide's score", "Methods")]
Candidates = Annotated[int, _option("tokens that the guide scores at each step", "Methods")]
Samples = Annotated[int, _option("responses per prompt", "Decoding")]
Batch = Annotated[int, _option("responses to one prompt that share a batch", "Decoding")]
Together = Annotated[
    PositiveInt,
    _option("prompts that share a batch: faster, but rounding differs", "Decoding"),
]
Temperature = Annotated[float, _option("temperature of every method; 0 is greedy", "Decoding")]
NewTokens = Annotated[int, _option("maximum length of a response", "Decoding")]
Device = Annotated[str, _option("cpu, cuda or cuda:1", "Decoding")]

_TASK_HEAD = _option(
    "a graft without a stream, compared as a control; `otter train --baseline head` makes it",
    "Methods",
)
_REWARD_MODEL = _option(
    "a reward model that guides ARGS; `otter train --baseline separate` makes it", "Methods"
)
_GOLD = _option("the judge: a reward model that guides no method", "Methods")


class PromptFile(StrictConfig):
    """Where prompts come from; see `data.prompts.draw_prompts`. With `chat` they are messages, or
    texts of a user, and the base's chat template writes them."""

    prompts: Annotated[Path, _option("a jsonl, csv or txt file, plain or .gz", "Prompts")]
    column: Annotated[str | None, _option("column of the prompts", "Prompts")] = None
    template: Template = "{text}"
    chat: Chat = False
    limit: Limit = None
    limit_seed: LimitSeed = 0


class Guidance(StrictConfig):
    """How strongly each guide steers. Signals differ in scale, so task head and ARGS may have
    strengths of their own."""

    signal: Signal
    strength: Strength
    head_strength: Annotated[
        float | None, _option("strength of the task head, if it differs", "Methods")
    ] = None
    args_strength: float | None = None
    candidates: Candidates = 10
    # Further strengths of the insertion, for a Pareto front.
    sweep: tuple[float, ...] = ()
    # Whether the signal was trained on the end of a text (a recipe's `eos`).
    end: bool = True

    def strength_or(self, own: float | None) -> float:
        """A guide's own strength, or the common one."""
        return self.strength if own is None else own


class BenchmarkOptions(PromptFile):
    """Options of every benchmark that generates. `task_head` is the control on the same base;
    without it, the run says what it leaves out."""

    folder: Folder
    task_head: Annotated[Path | None, _TASK_HEAD] = None
    signal: Signal
    method: Annotated[
        tuple[str, ...],
        _option(
            "a further method, repeatable: [NAME=]KIND:key=value,... such as "
            "rad:model=DIR,strength=2",
            "Methods",
        ),
    ] = ()
    samples: int = 1
    together: PositiveInt = 1
    batch: Batch = 1
    temperature: Temperature = 0.0
    max_new_tokens: NewTokens = 64
    seed: Annotated[int, _option("seed of sampling, for every method", "Decoding")] = 0
    device: Device = "cpu"

    @property
    def samples_per_prompt(self) -> int:
        return self.samples


class PreferenceOptions(Guidance, BenchmarkOptions):
    signal: Signal = "reward"
    reward_model: Annotated[Path | None, _REWARD_MODEL] = None
    gold: Annotated[Path, _GOLD]
    encoder: Annotated[
        Path | None, _option("sentence encoder, for coherence with the prompt", "Methods")
    ] = None
    strength: Strength = 1.5
    args_strength: Annotated[
        float | None, _option("strength of the reward model, if it differs", "Methods")
    ] = None
    sweep: Annotated[
        tuple[float, ...], _option("a further strength of the insertion, repeatable", "Methods")
    ] = ()
    samples: Samples = 1
    together: Together = 1
    batch: Batch = 8


class PairsOptions(StrictConfig):
    """Accuracy on pairs, `otter bench preference --pairs`. Judges are the graft's signal and the
    folders that are given."""

    folder: Folder
    pairs: Annotated[
        Path,
        _option("accuracy on pairs instead: a file like RewardBench's or HH's", "Prompts"),
    ]
    template: Template = "{text}"
    chat: Chat = False
    limit: Limit = None
    limit_seed: LimitSeed = 0
    signal: Signal = "reward"
    task_head: Annotated[Path | None, _TASK_HEAD] = None
    reward_model: Annotated[Path | None, _REWARD_MODEL] = None
    gold: Annotated[Path | None, _GOLD] = None
    device: Device = "cpu"


class DetoxOptions(Guidance, BenchmarkOptions):
    detoxify: Annotated[Path, _option("folder of a Detoxify checkpoint", "Methods")]
    signal: Signal = "toxicity"
    strength: Strength = -4.0
    candidates: Candidates = 20
    samples: Samples = 25
    together: Together = 1
    batch: Batch = 25
    temperature: Temperature = 1.0
    top_p: Annotated[float, _option("nucleus sampling of every method", "Decoding")] = 0.9
    max_new_tokens: NewTokens = 20


class SpeedupOptions(BenchmarkOptions):
    signal: Signal = "future"
    batch: Annotated[int, _option("copies of a prompt that share a batch", "Decoding")] = 1

    @property
    def samples_per_prompt(self) -> int:
        """At least the copies of one prompt that a batch holds."""
        return max(self.samples, self.batch)


class DetectionOptions(StrictConfig):
    """Texts come from either the held-out rows of a training `recipe` or from `pairs`."""

    folder: Folder
    recipe: Annotated[
        Path | None, _option("training recipe whose held-out rows are read", "Texts")
    ] = None
    pairs: Annotated[
        Path | None, _option("pairs file: chosen texts are clean, rejected ones offend", "Texts")
    ] = None
    data: Annotated[Path | None, _option("folder of the recipe's data files", "Texts")] = None
    limit: Limit = None
    limit_seed: LimitSeed = 0
    signal: Signal = "toxicity"
    monitor: Annotated[
        tuple[str, ...],
        _option("a further monitor, repeatable: NAME=FOLDER of a graft or a probe", "Methods"),
    ] = ()
    classifier: Annotated[
        Path | None, _option("`otter train --baseline separate` makes one", "Methods")
    ] = None
    device: Device = "cpu"


OPTIONS: dict[str, type[PreferenceOptions | DetoxOptions | DetectionOptions | SpeedupOptions]] = {
    "preference": PreferenceOptions,
    "detox": DetoxOptions,
    "detection": DetectionOptions,
    "speedup": SpeedupOptions,
}


class LmEvalTasks(StrictConfig):
    """Tasks of the harness. It finds their names in `include_path` alone, or without it among those
    that ship with it."""

    tasks: Annotated[str, _option("names of the harness's tasks, with commas between", "Tasks")]
    include_path: Annotated[
        Path | None, _option("folder of task files, used instead of the harness's own", "Tasks")
    ] = None
    limit: Annotated[
        int | None, _option("at most this many documents per task, drawn", "Tasks")
    ] = None
    limit_seed: Annotated[
        int, _option("which documents --limit draws; independent of --seed", "Tasks")
    ] = 0
    seed: Annotated[int, _option("seed of few-shot examples and sampling", "Decoding")] = 0

    @property
    def names(self) -> list[str]:
        return [name for name in self.tasks.split(",") if name]

    @field_validator("include_path")
    @classmethod
    def _is_folder(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_dir():
            raise OtterError(f"--include-path {path} is no folder", hint="give one of task files")
        return path


class LmEvalOptions(LmEvalTasks):
    """`base`: of an adapter, or another folder to load the base from. `guide`: a signal that guides
    decoding, as a third model."""

    folder: Folder
    base: Annotated[
        Path | None, _option("folder of the base (default: inside the graft)", "Models")
    ] = None
    guide: Annotated[
        str | None, _option("a signal: guided decoding as a third model", "Models")
    ] = None
    strength: Annotated[float, _option("weight of the guide's score", "Models")] = 1.0
    candidates: Annotated[int, _option("tokens that the guide scores at each step", "Models")] = 10
    dtype: Annotated[DtypeName | None, _option(f"{DTYPE_HELP}; default: as stored", "Models")] = (
        None
    )
    batch: Annotated[int, _option("requests that share a batch", "Decoding")] = 16
    device: Device = "cpu"


SHAPE_NAMES = ("llama-134m", "qwen3-0.6b", "llama-1b", "llama-7b", "tiny")


class OverheadOptions(StrictConfig):
    """Either a grafted `folder` is measured, or a base of `shape` with random weights, and an
    insertion of these sizes."""

    folder: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="a grafted folder; or give --shape")
    ] = None
    shape: Annotated[
        str | None,
        _option(f"random weights: {' | '.join(SHAPE_NAMES)}", "What to measure"),
    ] = None
    hidden: Annotated[int | None, _option("inserted hidden units", "What to measure")] = None
    heads: Annotated[int | None, _option("inserted query heads per layer", "What to measure")] = (
        None
    )
    ffn: Annotated[int | None, _option("inserted FFN units per layer", "What to measure")] = None
    kv: Annotated[str | None, _option("keys and values: own | base", "What to measure")] = None
    signal: Annotated[
        tuple[str, ...],
        _option("with --shape, as in otter graft (default: reward)", "What to measure"),
    ] = ()
    dtype: Annotated[
        DtypeName | None, _option(f"{DTYPE_HELP}; default: the folder's", "How to measure it")
    ] = None
    threads: Annotated[int | None, _option("threads of torch, on a CPU", "How to measure it")] = (
        None
    )
    batch: Annotated[PositiveInt, _option("rows of a pass", "How to measure it")] = 1
    context: Annotated[
        PositiveInt,
        _option("tokens of the prefill, and before the decoded ones", "How to measure it"),
    ] = 128
    repeats: Annotated[
        PositiveInt | None,
        _option(
            "decoding steps of each, in turns (default: as many as fit 3 minutes)",
            "How to measure it",
        ),
    ] = None
    device: Annotated[str, _option("cpu, cuda or cuda:1", "How to measure it")] = "cpu"
    peers: Annotated[
        bool, _option("LoRA and separate reward models, and Medusa-1 heads", "Measure too")
    ] = False
    decoding: Annotated[
        bool, _option("guided decoding, ARGS, best of n, at batch 1 and 8", "Measure too")
    ] = False
    guided: Annotated[
        bool, _option("Q-style, V-style, ARGS and plain alone, at batch 1 and 16", "Measure too")
    ] = False
    speculative: Annotated[bool, _option("passes that check drafts", "Measure too")] = False
    rows: Annotated[bool, _option("a step of 1 to 32 rows, by part: a curve", "Measure too")] = (
        False
    )
    training: Annotated[
        bool, _option("training steps: insertion, LoRA, full fine-tuning", "Measure too")
    ] = False
    surgery: Annotated[
        bool, _option("graft, verify and strip beside cp and sha256sum; start-up", "Measure too")
    ] = False
    profile: Annotated[bool, _option("the extra time by operation", "Measure too")] = False
    sweep: Annotated[
        bool, _option("insertions from 0.1 % to 20 %, FFN and attention", "Measure too")
    ] = False
    everything: Annotated[
        bool, typer.Option("--all", help="all of these", rich_help_panel="Measure too")
    ] = False

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes that are given, as `resolve_config` takes them."""
        sizes = {"hidden": self.hidden, "heads": self.heads, "ffn": self.ffn, "kv": self.kv}
        return {name: size for name, size in sizes.items() if size is not None}

    @property
    def label(self) -> str:
        """The name of the first row."""
        if self.folder is not None:
            return self.folder.resolve().name
        return "as asked" if self.sizes else "default"

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of what is measured beside prefill and decoding, in order."""
        chosen = {
            "peers": self.peers,
            "decoding": self.decoding,
            "guided": self.guided,
            "speculative": self.speculative,
            "rows": self.rows,
            "training": self.training,
            "surgery": self.surgery,
            "start-up": self.surgery,
            "profile": self.profile,
            "sweep": self.sweep,
        }
        return tuple(name for name, on in chosen.items() if on or self.everything)

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if (self.folder is None) == (self.shape is None):
            raise OtterError(
                "what is to be measured: a grafted folder or a shape",
                hint=f"name one of them: OUT, or --shape {'|'.join(SHAPE_NAMES)}",
            )
        if self.folder is not None and self.sizes:
            raise OtterError(
                "sizes belong to --shape: a grafted folder has its own",
                hint="leave --hidden, --heads, --ffn and --kv out",
            )
        if self.folder is not None and self.signal:
            raise OtterError(
                "--signal belongs to --shape: a grafted folder has its own signals",
                hint="leave --signal out; the signals of a folder change no time that is measured",
            )
        return self
