"""Base, graft and, with a guide, guided decoding through the harness, one model at a time.

run.yaml          the settings, whose digest is the run's key
methods/          the answers of each method, written when it ends: rerunning resumes
samples.jsonl     one line per method and document: responses and metrics
result.json, report.html, report.md"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from otter_cli.benchmarks.lm_eval.documents import (
    LmEvalDocument,
    LmEvalOutput,
    TaskIdentity,
    compare_documents,
    evaluate,
)
from otter_cli.benchmarks.metrics.estimates import Estimate, estimate
from otter_cli.benchmarks.options import LmEvalOptions
from otter_cli.benchmarks.results import ResultFile, ResultPart
from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.console import say
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Share, Statistic, mean
from otter_cli.core.jsonlines import JsonLinesWriter
from otter_cli.core.provenance import provenance
from otter_cli.core.strict_files import read_own_json_object, read_small_text_file
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.manifest import Manifest
from otter_cli.scorers.load import base_digest

if TYPE_CHECKING:
    from lm_eval.api.model import LM


SCHEMA_VERSION = 1
BASE, GRAFT, GUIDED = "base", "graft", "guided"
SAMPLES_FILE = "samples.jsonl"


class LmEvalGuidance(ResultPart):
    signal: str
    strength: float
    candidates: int


class LmEvalSettings(ResultPart):
    """What was run. `base` and `weights` are digests. `limit_seed`: of the draw of a limit; absent
    without a limit, and in old runs, whose limit took the head."""

    folder: str
    base: str
    weights: str
    tasks: list[str]
    limit: int | None
    limit_seed: int | None = None
    batch: int
    dtype: str | None
    device: str
    seed: int
    guidance: LmEvalGuidance | None

    @property
    def key(self) -> str:
        """Equal for equal settings, wherever the folder is."""
        return sha256_json({k: v for k, v in self.written().items() if k != "folder"})

    def written(self) -> dict[str, Any]:
        """As run.yaml has it."""
        exclude = {"limit_seed"} if self.limit_seed is None else set()
        return self.model_dump(mode="json", exclude=exclude)


class LmEvalResult(ResultFile):
    """`definitions`: digests of the tasks' configurations. `metrics`: by method, task and metric,
    with intervals over documents."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Literal["lm-eval"] = "lm-eval"
    key: str
    settings: LmEvalSettings
    definitions: dict[str, str]
    metrics: dict[str, dict[str, dict[str, Estimate]]]
    identity: dict[str, TaskIdentity]
    provenance: dict[str, Any]

    @property
    def holds(self) -> bool:
        return all(task.equal == task.documents for task in self.identity.values())


def run_lm_eval(options: LmEvalOptions, out: Path | None = None) -> tuple[LmEvalResult, Path]:
    """The result and its folder. A run that was killed resumes with the method that it was at.
    Raises OtterError."""
    manifest = open_graft(options.folder, base=options.base)
    guidance = None
    if options.guide:
        _require_signal(manifest, options.guide)
        guidance = LmEvalGuidance(
            signal=options.guide, strength=options.strength, candidates=options.candidates
        )
    settings = LmEvalSettings(
        folder=str(options.folder),
        base=base_digest(options.base or options.folder, manifest),
        weights=manifest.inserted.sha256,
        tasks=options.names,
        limit=options.limit,
        limit_seed=None if options.limit is None else options.limit_seed,
        batch=options.batch,
        dtype=options.dtype,
        device=options.device,
        seed=options.seed,
        guidance=guidance,
    )
    folder = out or Path("runs") / f"lm-eval-{settings.key[:10]}"
    _claim_folder(settings, folder)
    evaluations = {
        method: _evaluate_once(method, load, options, folder) for method, load in _models(options)
    }
    _require_same_tasks(evaluations, folder)
    result = LmEvalResult(
        key=settings.key,
        settings=settings,
        definitions=evaluations[BASE].definitions,
        metrics={method: _metrics(output.documents) for method, output in evaluations.items()},
        identity=compare_documents(evaluations[BASE].documents, evaluations[GRAFT].documents),
        provenance=provenance(),
    )
    _write_samples(evaluations, folder)
    result.write(folder)
    return result, folder


def _models(options: LmEvalOptions) -> Iterator[tuple[str, Callable[[], LM]]]:
    """Each method and the function that loads its model, so that one model is in memory at once."""
    arguments: dict[str, Any] = {
        "pretrained": str(options.folder),
        "base": None if options.base is None else str(options.base),
        "dtype": options.dtype,
        "device": options.device,
        "batch_size": options.batch,
    }

    def base() -> LM:
        """The stock model alone, in the harness's own class."""
        import torch
        from lm_eval.models.huggingface import HFLM

        from otter_cli.model.load import load_base, load_tokenizer

        folder = options.base or options.folder
        dtype = getattr(torch, options.dtype) if options.dtype else None
        model, tokenizer = load_base(folder, dtype=dtype), load_tokenizer(folder)
        model = model.to(options.device).eval()
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch)

    def graft() -> LM:
        from otter_cli.benchmarks.lm_eval.models import OtterLM

        return OtterLM(**arguments)

    def guided() -> LM:
        from otter_cli.benchmarks.lm_eval.models import OtterGuidedLM

        assert options.guide is not None
        return OtterGuidedLM(
            signal=options.guide,
            strength=options.strength,
            candidates=options.candidates,
            seed=options.seed,
            **arguments,
        )

    yield BASE, base
    yield GRAFT, graft
    if options.guide:
        yield GUIDED, guided


def _evaluate_once(
    method: str, load: Callable[[], LM], options: LmEvalOptions, folder: Path
) -> LmEvalOutput:
    """All answers of a method, from its file if it has finished before. A method is never resumed
    halfway: other batches would round otherwise than those of the method it is compared with."""
    path = folder / "methods" / f"{method}.json"
    if path.exists():
        say(f"lm-eval: {method} has answered before")
        return LmEvalOutput.model_validate(read_own_json_object(path))
    say(f"lm-eval: {method}")
    output = evaluate(load(), options)
    gc.collect()  # before the next model is loaded
    path.parent.mkdir(exist_ok=True)
    write_json(path, output.model_dump())
    return output


def _require_same_tasks(evaluations: dict[str, LmEvalOutput], folder: Path) -> None:
    """Raises OtterError where a task file changed between two sittings."""
    for method, output in evaluations.items():
        if output.definitions != evaluations[BASE].definitions:
            raise OtterError(
                f"{folder}: the tasks of {method} are not those of {BASE}: a task file changed",
                hint="choose another --out, or remove the folder",
            )


def _claim_folder(settings: LmEvalSettings, folder: Path) -> None:
    """Write run.yaml. Raises OtterError where the folder holds files that are not of this run."""
    path = folder / "run.yaml"
    text = f"# key: {settings.key}\n{yaml.safe_dump(settings.written(), sort_keys=False)}"
    if folder.exists() and any(folder.iterdir()):
        if not path.exists() or read_small_text_file(path) != text:
            raise OtterError(
                f"{folder} holds files that are not of this run", hint="choose another --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _write_samples(evaluations: dict[str, LmEvalOutput], folder: Path) -> None:
    (folder / SAMPLES_FILE).unlink(missing_ok=True)
    with JsonLinesWriter(folder / SAMPLES_FILE) as lines:
        for method, output in evaluations.items():
            for document in output.documents:
                lines.append({"method": method, **document.model_dump()})


def _statistic(values: list[float]) -> Statistic:
    """Documents that count as 0 or 1, such as right answers, make a share."""
    return (Share if {0.0, 1.0}.issuperset(values) else mean)(np.array(values))


def _metrics(documents: list[LmEvalDocument]) -> dict[str, dict[str, Estimate]]:
    values: dict[str, dict[str, list[float]]] = {}
    for document in documents:
        for name, value in document.metrics.items():
            values.setdefault(document.task, {}).setdefault(name, []).append(value)
    return {
        task: {
            name: estimate(_statistic(column), len(column), f"{name} of {task}")
            for name, column in columns.items()
        }
        for task, columns in values.items()
    }


def _require_signal(manifest: Manifest, signal: str) -> None:
    """Raises OtterError before base and graft run for hours."""
    known = [head.name for config in manifest.insertions for head in config.signals]
    if signal not in known:
        raise OtterError(
            f"there is no signal {signal!r} to guide by in this graft",
            hint=f"its signals: {', '.join(known) or 'none'}",
        )
