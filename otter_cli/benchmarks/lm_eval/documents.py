"""What the harness gives for each document of its tasks, and whether two models agree on it.

Responses are compared bit for bit: a float is equal where its shortest text is equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from otter_cli.benchmarks.options import LmEvalTasks
from otter_cli.benchmarks.results import ResultPart
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.data.splits import draw_rows

if TYPE_CHECKING:
    from lm_eval.api.model import LM


class TaskIdentity(ResultPart):
    """Of one task: documents and responses (log-likelihoods, texts) that are the base's, bit for
    bit; `first` is the first document that is not."""

    documents: int = 0
    equal: int = 0
    responses: int = 0
    responses_equal: int = 0
    first: int | None = None


@dataclass(frozen=True)
class LmEvalDocument:
    """`digest`: of the document and its prompts. `responses`: one a request, (log-likelihood,
    greedy) or a text; `metrics`: those of this document that are numbers."""

    task: str
    document: int
    digest: str
    responses: list[Any]
    metrics: dict[str, float]

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LmEvalOutput:
    """Documents in the tasks' order; `definitions`: digest of each task's configuration."""

    documents: list[LmEvalDocument]
    definitions: dict[str, str]

    @classmethod
    def restored(cls, written: dict[str, Any]) -> Self:
        documents = [LmEvalDocument(**document) for document in written["documents"]]
        return cls(documents, written["definitions"])


def evaluate(model: LM, tasks: LmEvalTasks) -> LmEvalOutput:
    """Runs `simple_evaluate`. Raises OtterError for a task that it does not know."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(tasks.include_path) if tasks.include_path else None,
        include_defaults=tasks.include_path is None,
    )
    unknown = [name for name in tasks.names if not manager.match_tasks([name])]
    if unknown:
        place = (
            f"in {tasks.include_path}"
            if tasks.include_path
            else "among those that ship with lm-eval"
        )
        raise OtterError(
            f"no task {unknown[0]!r} {place}",
            hint="--include-path takes a folder of task files; `lm-eval ls tasks` lists the others",
        )
    drawn = None if tasks.limit is None else _draw_documents(manager, tasks)
    found = simple_evaluate(
        model,
        tasks=tasks.names,
        task_manager=manager,
        samples=drawn,
        # Intervals are ours, from the documents.
        bootstrap_iters=0,
        random_seed=tasks.seed,
        numpy_random_seed=tasks.seed,
        torch_random_seed=tasks.seed,
        fewshot_random_seed=tasks.seed,
    )
    documents = [document for task in found["samples"] for document in _documents(found, task)]
    definitions = {
        task: sha256_json(_portable_configuration(found["configs"][task]))
        for task in found["samples"]
    }
    return LmEvalOutput(documents, definitions)


def _draw_documents(manager: Any, tasks: LmEvalTasks) -> dict[str, list[int]]:
    """Places of the documents that the limit keeps, by task; across their categories, where
    documents have such. The harness's own limit takes the head of each task."""
    found = manager.load(tasks.names)["tasks"]
    return {
        name: draw_rows([_category(d) for d in task.eval_docs], tasks.limit, tasks.limit_seed)
        for name, task in found.items()
    }


def _category(document: Any) -> str:
    names = ("category", "subject", "subset", "field")
    known = document if isinstance(document, dict) else {}
    return next((str(known[name]) for name in names if name in known), "")


def _documents(found: dict[str, Any], task: str) -> Iterator[LmEvalDocument]:
    for sample in found["samples"][task]:
        metrics = {name: sample[name] for name in sample["metrics"]}
        yield LmEvalDocument(
            task=task,
            document=int(sample["doc_id"]),
            digest=sha256_json([sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]]),
            responses=[list(once) for request in sample["resps"] for once in map(_tuple, request)],
            metrics={n: float(v) for n, v in metrics.items() if isinstance(v, bool | int | float)},
        )


def _tuple(response: Any) -> tuple[Any, ...]:
    return tuple(response) if isinstance(response, list | tuple) else (response,)


def compare_documents(
    base: Iterable[LmEvalDocument], graft: Iterable[LmEvalDocument]
) -> dict[str, TaskIdentity]:
    """By task, how many documents of `graft` have the base's responses to the last bit."""
    found: dict[str, TaskIdentity] = {}
    for ours, theirs in zip(graft, base, strict=True):
        one = found.setdefault(ours.task, TaskIdentity())
        pairs = zip(ours.responses, theirs.responses, strict=True)
        same = [_exact_text(mine) == _exact_text(other) for mine, other in pairs]
        whole = ours.digest == theirs.digest and all(same)
        one.documents += 1
        one.equal += whole
        one.responses += len(same)
        one.responses_equal += sum(same)
        if not whole and one.first is None:
            one.first = ours.document
    return found


def _exact_text(response: Any) -> str:
    """Every finite float has a shortest text of its own, -0.0 and 0.0 included."""
    return json.dumps(response)


def _portable_configuration(configuration: dict[str, Any]) -> dict[str, Any]:
    """A task's configuration without where its data lie on this machine."""
    told = {k: v for k, v in configuration.items() if k not in ("dataset_kwargs", "metadata")}
    plain: dict[str, Any] = json.loads(json.dumps(told, default=_type_name))
    return plain


def _type_name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
