"""What signals cost in vLLM: stock on the base, the plugin, and a reward model beside stock.

    python -m tests.performance.serving SHARED/models/chat-7m SHARED --out results/serving/throughput.json
    ... --shape qwen3-0.6b --prompts 16 --longest 16 --tokens 32 --threads 2 --out results/serving/throughput-qwen3-0.6b.json

In the environment of `make test-vllm`. Engines live side by side, one works at a time; a round asks
each the same prompts, there and back again, so that a machine that gets slower or faster meanwhile
does so for all, and who begins moves on. Times are paired within a round. Where a process's
memory lies moves it by some per cent, so engines are started several times, with huge pages, and
intervals are over starts. A second insertion has no query heads: of the base it reads attention
outputs and activations alone.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from otter_cli.benchmarks.overhead.measured_models import SHAPES
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.intervals import interval, mean
from otter_cli.core.provenance import provenance
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.serving.vllm.client import SignalReader
from otter_cli.serving.vllm.export import export_vllm
from tests.support.grafts import random_graft

# In every layer.
FORM = {"kv": "base", "scale": 0.02, "signals": ("reward",)}
SIZES = {"hidden": 16, "heads": 1, "kv_heads": 1, "ffn": 16}
NO_HEADS = {"heads": 0, "kv_heads": 0}
# At chat-7m's size a step is calls more than arithmetic: these are 18, 86 and 178 times as large.
LARGER = {
    "llama-125m": {**SHAPES["llama-134m"], "num_key_value_heads": 4, "head_dim": 64},
    "qwen3-0.6b": SHAPES["qwen3-0.6b"],
    "llama-1b": SHAPES["llama-1b"],
}
ENGINE = {
    "dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "seed": 0,
    "enable_prefix_caching": False, "distributed_executor_backend": "uni",
}  # fmt: skip
ON = SignalReader.from_signals("reward").sampling(["reward"])
# Of each engine with the plugin, the folder of its graft.
GRAFTS = {"plugin": "graft", "plugin without heads": "fewer"}
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("stock", {}),
    "stock, a log-probability": ("stock", {"logprobs": 1}),
    "plugin, signals off": ("plugin", {}),
    "plugin, signals on": ("plugin", ON),
    "plugin without heads, signals off": ("plugin without heads", {}),
    "plugin without heads, signals on": ("plugin without heads", ON),
}
PAIR = "stock, then a reward model"


class Engine:
    """A process with one engine, which waits between questions; `plugin`: it may load ours."""

    def __init__(self, threads: int, plugin: bool, **keywords: Any) -> None:
        environment = {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads),
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            **({} if plugin else {"VLLM_PLUGINS": "none"}),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.performance.serving_engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._write(keywords)

    def ask(self, **asked: Any) -> dict[str, Any]:
        self._write(asked)
        return self.answer()

    def _write(self, asked: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next one; the first says that the engine has started."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"an engine ended with {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def write_random(shape: str, like: Path, folder: Path, dtype: str) -> Path:
    """A random base of a real model's shape, with the tokenizer of `like`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**LARGER[shape], dtype=dtype)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in like.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def write_models(base: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Keywords of LLM for each engine: the base, the served graft, and a classifier that has the
    base's weights and a random head, as large as the base and as fast as any."""
    export_vllm(random_graft(base, work / "graft", **FORM, **SIZES), work / "served")
    fewer = {**FORM, **SIZES, **NO_HEADS}
    export_vllm(random_graft(base, work / "fewer", **fewer), work / "served-without-heads")
    judge = work / "judge"
    shutil.copytree(base, judge, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((base / "config.json").read_text())
    judges = [n.replace("CausalLM", "SequenceClassification") for n in config["architectures"]]
    changed = {"architectures": judges, "id2label": {"0": "reward"}}
    (judge / "config.json").write_text(json.dumps({**config, **changed, "num_labels": 1}))
    tensors = load_file(base / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    head = torch.randn(1, config["hidden_size"], generator=torch.Generator().manual_seed(0)) * 0.05
    head = head.to(next(iter(tensors.values())).dtype)
    save_file({**tensors, "score.weight": head}, judge / "model.safetensors")
    return {
        "stock": {"model": str(base)},
        "plugin": {"model": str(work / "served")},
        "plugin without heads": {"model": str(work / "served-without-heads")},
        "judge": {"model": str(judge), "runner": "pooling"},
    }


def one_start(
    models: dict[str, dict[str, Any]],
    settings: dict[str, Any],
    asked: dict[str, Any],
    options: argparse.Namespace,
    number: int,
) -> list[dict[str, float]]:
    """Seconds of each side, by round; a first round warms up."""
    engines = {
        name: Engine(options.threads, name.startswith("plugin"), **settings, **keywords)
        for name, keywords in models.items()
    }
    for name, engine in engines.items():
        print(f"{name}: started in {engine.answer()['seconds']:.0f} s", flush=True)
    rounds = []
    for turn in range(options.rounds + 1):
        rounds.append(one_round(engines, asked, number + turn))
        print({name: round(seconds, 2) for name, seconds in rounds[-1].items()}, flush=True)
    for engine in engines.values():
        engine.end()
    return rounds[1:]


def one_round(engines: dict[str, Engine], asked: dict[str, Any], first: int) -> dict[str, float]:
    """Seconds of each side; checks that all say the same, and that every token has its number."""
    names, said = list(SIDES), None
    order = names[first % len(names) :] + names[: first % len(names)]
    seconds = dict.fromkeys([*names, PAIR], 0.0)
    for name in [*order, *reversed(order)]:
        engine, more = SIDES[name]
        sampling = {**asked["sampling"], **more}
        found = engines[engine].ask(prompts=asked["prompts"], sampling=sampling)
        said = said or found["tokens"]
        assert found["tokens"] == said
        if name.endswith("signals on"):
            assert found["numbers"] == sum(map(len, said))
        seconds[name] += found["seconds"]
        if name == "stock":
            # The pair generates as stock has just done, and then scores.
            texts = [prompt + tokens for prompt, tokens in zip(asked["prompts"], said, strict=True)]
            scored = engines["judge"].ask(prompts=texts)
            assert scored["numbers"] == len(texts)
            seconds[PAIR] += found["seconds"] + scored["seconds"]
    return seconds


def throughput(starts: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Of each side over stock's, and of the plugin with signals over the pair's: a start gives the
    median of its rounds, where sides are paired."""
    names = starts[0][0]
    pairs = {f"{name} / stock": ("stock", name) for name in names if name != "stock"}
    for plugin in ("plugin", "plugin without heads"):
        on, off = f"{plugin}, signals on", f"{plugin}, signals off"
        pairs |= {f"{on} / {PAIR}": (PAIR, on), f"{on} / off": (off, on)}
    figures = {}
    for name, (top, bottom) in pairs.items():
        of_starts = [np.median([one[top] / one[bottom] for one in rounds]) for rounds in starts]
        figure = interval(mean(np.array(of_starts)), len(starts), what=name)
        figures[name] = {k: round(getattr(figure, k), 3) for k in ("mean", "low", "high")}
        figures[name]["n"] = len(starts)
    return figures


def prompts_of(shared: Path, base: Path, count: int, longest: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    from tests.vllm.support import mixed_prompts

    prompts = mixed_prompts(shared, AutoTokenizer.from_pretrained(base), count)
    return [prompt[:longest] for prompt in prompts]


def described(graft: Path) -> dict[str, Any]:
    """An insertion, and how large it is beside its base."""
    (config,) = Manifest.read(graft).insertions
    shape = base_shape(Checkpoint.open(graft).config)
    inserted = sum(slot.count for slot in Plan(config, shape).tensors)
    base = sum(info.count for info in Checkpoint.open(graft).tensors.values())
    return {**config.model_dump(mode="json"), "parameters_over_base": round(inserted / base, 4)}


def made(options: argparse.Namespace, work: Path) -> tuple[Path, list[list[int]]]:
    """The base, and the prompts that its tokenizer makes."""
    base = options.base
    if options.shape:
        base = write_random(options.shape, options.base, work / "base", options.dtype)
    return base, prompts_of(options.shared, options.base, options.prompts, options.longest)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    base, prompts = made(options, work)
    asked = {
        "prompts": prompts,
        "sampling": {"temperature": 0.0, "max_tokens": options.tokens, "ignore_eos": True},
    }
    settings = {**ENGINE, "dtype": options.dtype, "enforce_eager": options.eager}
    models, load = write_models(base, work), os.getloadavg()[0]
    starts = [
        one_start(models, settings, asked, options, number) for number in range(options.starts)
    ]
    return {
        "base": LARGER[options.shape] if options.shape else options.base.name,
        "engine": settings,
        "insertions": {name: described(work / folder) for name, folder in GRAFTS.items()},
        "prompt_tokens": sum(map(len, prompts)),
        "load": {"before": load, "after": os.getloadavg()[0]},
        "throughput": throughput(starts),
        "seconds": {
            name: [[round(r[name], 3) for r in rounds] for rounds in starts]
            for name in starts[0][0]
        },
        "tokens_equal_to_stock": True,
    }


def arguments(what: str, sizes: dict[str, int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("base", type=Path)
    parser.add_argument("shared", type=Path, help="the folder with data/prompts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=LARGER, help="a random base, with BASE's tokenizer")
    for name, usual in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser


def command(module: str, options: argparse.Namespace, sizes: dict[str, int]) -> str:
    flags = [f"--{name} {getattr(options, name)}" for name in sizes]
    flags += [f"--shape {options.shape}"] * bool(options.shape) + [f"--dtype {options.dtype}"]
    return f"python -m {module} chat-7m SHARED {' '.join(flags)}"


def write(out: Path, record: dict[str, Any], shown: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps(record[shown], indent=2))


def main() -> None:
    sizes = {"starts": 3, "rounds": 4, "prompts": 48, "longest": 200, "tokens": 48, "threads": 1}
    parser, module = arguments(__doc__.splitlines()[0], sizes), "tests.performance.serving"
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        record = {
            "command": command(module, options, sizes) + " --eager" * options.eager,
            **{name: getattr(options, name) for name in sizes},
            **measure(options, Path(work)),
            "provenance": provenance([module]),
        }
    write(options.out, record, "throughput")


if __name__ == "__main__":
    main()
