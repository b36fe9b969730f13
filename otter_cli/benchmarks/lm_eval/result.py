"""result.json of `otter bench lm-eval`: what the harness measured, and whether a graft says of
every document what its base says."""

from __future__ import annotations

from typing import Any, Literal

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.result_file import Part, ResultFile
from otter_cli.core.digests import sha256_json

SCHEMA_VERSION = 1
BASE, GRAFT, GUIDED = "base", "graft", "guided"


class Guidance(Part):
    signal: str
    strength: float
    candidates: int


class Settings(Part):
    """What was run: `base` and `weights` are digests."""

    folder: str
    base: str
    weights: str
    tasks: list[str]
    limit: int | None
    # Which documents a limit draws; absent where it took the head, and without a limit.
    limit_seed: int | None = None
    batch: int
    dtype: str | None
    device: str
    seed: int
    guidance: Guidance | None

    @property
    def key(self) -> str:
        """Equal for equal settings, wherever the folder lies."""
        return sha256_json({k: v for k, v in self.written().items() if k != "folder"})

    def written(self) -> dict[str, Any]:
        """As run.yaml has it: runs without a limit are as they were before it was drawn."""
        unsaid = {"limit_seed"} if self.limit_seed is None else set()
        return self.model_dump(mode="json", exclude=unsaid)


class Identity(Part):
    """Of one task: documents and responses (log-likelihoods, texts) that are the base's, bit for
    bit; `first` is the first document that is not."""

    documents: int = 0
    equal: int = 0
    responses: int = 0
    responses_equal: int = 0
    first: int | None = None


class LmEvalResult(ResultFile):
    """`definitions`: digests of the tasks' own, by name. `metrics`: by method, task and
    metric, resampled by document."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Literal["lm-eval"] = "lm-eval"
    key: str
    settings: Settings
    definitions: dict[str, str]
    metrics: dict[str, dict[str, dict[str, Estimate]]]
    identity: dict[str, Identity]
    provenance: dict[str, Any]

    @property
    def holds(self) -> bool:
        return all(one.equal == one.documents for one in self.identity.values())
