"""Base, graft and, where asked for, guided decoding through the harness, one model at a time.

run.yaml          the settings, whose digest is the run's key
samples.jsonl     one line a method and document: responses and metrics
result.json, report.html, report.md
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from otter_cli.benchmarks.estimates import Estimate, estimate
from otter_cli.benchmarks.lm_eval.documents import Document, Evaluation, Tasks, compare, evaluate
from otter_cli.benchmarks.lm_eval.result import (
    BASE,
    GRAFT,
    GUIDED,
    Guidance,
    LmEvalResult,
    Settings,
)
from otter_cli.benchmarks.models import base_digest
from otter_cli.core.atomic import write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import mean
from otter_cli.core.jsonlines import JsonLines
from otter_cli.core.provenance import provenance
from otter_cli.insertion import Manifest

if TYPE_CHECKING:
    from lm_eval.api.model import LM

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Asked:
    """`base`: of an adapter, or to load what the graft is compared with from its own folder."""

    folder: Path
    base: Path | None
    tasks: Tasks
    batch: int = 16
    dtype: str | None = None
    device: str = "cpu"
    guidance: Guidance | None = None

    def models(self) -> Iterator[tuple[str, Callable[[], LM]]]:
        yield BASE, self._base
        yield GRAFT, self._graft
        if self.guidance:
            yield GUIDED, self._guided

    def _base(self) -> LM:
        """The stock model by itself, in the harness's own class: nothing of ours."""
        import torch
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        from otter_cli.model import load_base

        folder = self.base or self.folder
        model = load_base(folder, dtype=getattr(torch, self.dtype) if self.dtype else None)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = model.to(self.device).eval()
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch)

    def _graft(self) -> LM:
        from otter_cli.benchmarks.lm_eval.models import OtterLM

        return OtterLM(**self._arguments())

    def _guided(self) -> LM:
        from otter_cli.benchmarks.lm_eval.models import OtterGuidedLM

        assert self.guidance is not None
        steering = self.guidance.model_dump()
        return OtterGuidedLM(**steering, seed=self.tasks.seed, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {
            "pretrained": str(self.folder),
            "base": None if self.base is None else str(self.base),
            "dtype": self.dtype,
            "device": self.device,
            "batch_size": self.batch,
        }


def run(asked: Asked) -> tuple[LmEvalResult, list[tuple[str, Document]]]:
    """The result, and the documents with the method that answered each. Raises OtterError."""
    manifest = Manifest.read(asked.folder)
    if asked.guidance:
        _require_scores(manifest, asked.guidance.signal)
    evaluations: dict[str, Evaluation] = {}
    for method, load in asked.models():
        say(f"lm-eval: {method}")
        evaluations[method] = evaluate(load(), asked.tasks)
        gc.collect()  # before the next model is loaded
    settings = Settings(
        folder=str(asked.folder),
        base=base_digest(manifest),
        weights=manifest.inserted.sha256,
        tasks=list(asked.tasks.names),
        definitions=evaluations[BASE].definitions,
        limit=asked.tasks.limit,
        batch=asked.batch,
        dtype=asked.dtype,
        device=asked.device,
        seed=asked.tasks.seed,
        guidance=asked.guidance,
    )
    result = LmEvalResult(
        key=settings.key,
        settings=settings,
        metrics={method: _metrics(found.documents) for method, found in evaluations.items()},
        identity=compare(evaluations[BASE].documents, evaluations[GRAFT].documents),
        provenance=provenance(),
    )
    return result, [(name, one) for name, found in evaluations.items() for one in found.documents]


def write(result: LmEvalResult, documents: list[tuple[str, Document]], folder: Path) -> None:
    """Raises OtterError where the folder holds files, and they are of another run."""
    settings = folder / "run.yaml"
    text = yaml.safe_dump(result.settings.model_dump(mode="json"), sort_keys=False)
    text = f"# key: {result.key}\n{text}"
    if folder.exists() and any(folder.iterdir()):
        if not settings.exists() or settings.read_text(encoding="utf-8") != text:
            raise OtterError(
                f"{folder} holds files that are not of this run", hint="choose another --out"
            )
        (folder / SAMPLES).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(settings, text)
    with JsonLines(folder / SAMPLES) as lines:
        for method, document in documents:
            lines.append({"method": method, **document.record()})
    result.write(folder)


def _metrics(documents: list[Document]) -> dict[str, dict[str, Estimate]]:
    values: dict[str, dict[str, list[float]]] = {}
    for document in documents:
        for name, value in document.metrics.items():
            values.setdefault(document.task, {}).setdefault(name, []).append(value)
    return {
        task: {
            name: estimate(mean(np.array(column)), len(column), f"{name} of {task}")
            for name, column in columns.items()
        }
        for task, columns in values.items()
    }


def _require_scores(manifest: Manifest, signal: str) -> None:
    """Before base and graft have run for hours."""
    known = [one.name for config in manifest.insertions for one in config.signals]
    if signal not in known:
        raise OtterError(
            f"there is no signal {signal!r} to guide by in this graft",
            hint=f"its signals: {', '.join(known) or 'none'}",
        )
