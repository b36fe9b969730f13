"""What the harness gives for each document of its tasks, and whether two models agree on it.

Responses are compared bit for bit: a float is equal where its shortest text is equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from otter_cli.benchmarks.options import LmEvalTasks
from otter_cli.benchmarks.results import ResultPart
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictRecord
from otter_cli.data.splits import draw_rows

if TYPE_CHECKING:
    from lm_eval.api.model import LM


class TaskIdentity(ResultPart):
    """How many documents and responses (log-likelihoods, texts) of a task equal the base's, bit for
    bit. `first`: the first document that does not."""

    documents: int = 0
    equal: int = 0
    responses: int = 0
    responses_equal: int = 0
    first: int | None = None


class LmEvalDocument(StrictRecord):
    """`digest`: of the document and its prompts. `responses`: one per request, (log-likelihood,
    greedy) or a text. `metrics`: the document's metrics that are numbers."""

    task: str
    document: int
    digest: str
    responses: list[Any]
    metrics: dict[str, float]


class LmEvalOutput(StrictRecord):
    """Documents in the tasks' order. `definitions`: the digest of each task's configuration."""

    documents: list[LmEvalDocument]
    definitions: dict[str, str]


def evaluate(model: LM, tasks: LmEvalTasks) -> LmEvalOutput:
    """Runs the harness's `simple_evaluate`. Raises OtterError for an unknown task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = tasks.include_path
    manager = TaskManager(
        include_path=str(folder) if folder else None, include_defaults=folder is None
    )
    unknown = [name for name in tasks.names if not manager.match_tasks([name])]
    if unknown:
        place = f"in {folder}" if folder else "among those that ship with lm-eval"
        raise OtterError(
            f"no task {unknown[0]!r} {place}",
            hint="--include-path takes a folder of task files; `lm-eval ls tasks` lists the others",
        )
    output = simple_evaluate(
        model,
        tasks=tasks.names,
        task_manager=manager,
        samples=None if tasks.limit is None else _draw_documents(manager, tasks),
        # Intervals are ours, from the documents.
        bootstrap_iters=0,
        random_seed=tasks.seed,
        numpy_random_seed=tasks.seed,
        torch_random_seed=tasks.seed,
        fewshot_random_seed=tasks.seed,
    )
    return LmEvalOutput(
        documents=[document for task in output["samples"] for document in _documents(output, task)],
        definitions={
            task: sha256_json(_portable_configuration(output["configs"][task]))
            for task in output["samples"]
        },
    )


def _draw_documents(manager: Any, tasks: LmEvalTasks) -> dict[str, list[int]]:
    """By task, the places of the documents that the limit keeps, drawn across their categories.
    The harness's own limit takes the head of each task."""
    return {
        name: draw_rows([_category(d) for d in task.eval_docs], tasks.limit, tasks.limit_seed)
        for name, task in manager.load(tasks.names)["tasks"].items()
    }


def _category(document: Any) -> str:
    names = ("category", "subject", "subset", "field")
    known = document if isinstance(document, dict) else {}
    return next((str(known[name]) for name in names if name in known), "")


def _documents(output: dict[str, Any], task: str) -> Iterator[LmEvalDocument]:
    for sample in output["samples"][task]:
        metrics = {name: sample[name] for name in sample["metrics"]}
        responses = [response for request in sample["resps"] for response in request]
        yield LmEvalDocument(
            task=task,
            document=int(sample["doc_id"]),
            digest=sha256_json([sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]]),
            responses=[list(r) if isinstance(r, list | tuple) else [r] for r in responses],
            metrics={n: float(v) for n, v in metrics.items() if isinstance(v, bool | int | float)},
        )


def compare_documents(
    base: Iterable[LmEvalDocument], graft: Iterable[LmEvalDocument]
) -> dict[str, TaskIdentity]:
    """By task, how many documents of `graft` have the base's responses to the last bit."""
    tasks: dict[str, TaskIdentity] = {}
    for document, reference in zip(graft, base, strict=True):
        task = tasks.setdefault(document.task, TaskIdentity())
        pairs = zip(document.responses, reference.responses, strict=True)
        # Every finite float has its own shortest text, -0.0 and 0.0 included.
        same = [json.dumps(one) == json.dumps(other) for one, other in pairs]
        equal = document.digest == reference.digest and all(same)
        task.documents += 1
        task.equal += equal
        task.responses += len(same)
        task.responses_equal += sum(same)
        if not equal and task.first is None:
            task.first = document.document
    return tasks


def _portable_configuration(configuration: dict[str, Any]) -> dict[str, Any]:
    """A task's configuration without the place of its data on this machine."""
    kept = {k: v for k, v in configuration.items() if k not in ("dataset_kwargs", "metadata")}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=_type_name))
    return plain


def _type_name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
