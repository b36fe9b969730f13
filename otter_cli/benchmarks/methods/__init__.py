"""Ways of generating that are compared: one entry of `METHODS` each, made from its options."""

from collections.abc import Callable

from otter_cli.benchmarks.benchmark import Method
from otter_cli.benchmarks.methods.by_experts import dexperts, dexperts_inserted, genarm
from otter_cli.benchmarks.methods.by_rewards import args, rad, value, vocabulary
from otter_cli.benchmarks.methods.drafted import draft_model, future, prompt_lookup
from otter_cli.benchmarks.methods.entrant import Entrant
from otter_cli.benchmarks.methods.unsteered import best_of_n, early_stop, plain

METHODS: dict[str, Callable[..., Method]] = {
    "plain": plain,
    "value": value,
    "vocabulary": vocabulary,
    "args": args,
    "rad": rad,
    "genarm": genarm,
    "dexperts": dexperts,
    "dexperts-inserted": dexperts_inserted,
    "best-of-n": best_of_n,
    "early-stop": early_stop,
    "future": future,
    "prompt-lookup": prompt_lookup,
    "draft-model": draft_model,
}

__all__ = ["METHODS", "Entrant"]
