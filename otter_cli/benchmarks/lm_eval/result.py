"""result.json of `otter bench lm-eval`: what the harness measured, and whether a graft says of
every document what its base says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.result import RESULT
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError

SCHEMA_VERSION = 1
BASE, GRAFT, GUIDED = "base", "graft", "guided"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Guidance(Part):
    signal: str
    strength: float
    candidates: int


class Settings(Part):
    """What was run: `base` and `weights` are digests, `definitions` the tasks' own, by name."""

    folder: str
    base: str
    weights: str
    tasks: list[str]
    definitions: dict[str, str]
    limit: int | None
    batch: int
    dtype: str | None
    device: str
    seed: int
    guidance: Guidance | None

    @property
    def key(self) -> str:
        """Equal for equal settings, wherever the folder lies."""
        return sha256_json(self.model_dump(mode="json", exclude={"folder"}))


class Identity(Part):
    """Of one task: documents and responses (log-likelihoods, texts) that are the base's, bit for
    bit; `first` is the first document that is not."""

    documents: int = 0
    equal: int = 0
    responses: int = 0
    responses_equal: int = 0
    first: int | None = None


class LmEvalResult(Part):
    """`metrics`: by method, task and metric, resampled by document."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Literal["lm-eval"] = "lm-eval"
    key: str
    settings: Settings
    metrics: dict[str, dict[str, dict[str, Estimate]]]
    identity: dict[str, Identity]
    provenance: dict[str, Any]

    @property
    def holds(self) -> bool:
        return all(one.equal == one.documents for one in self.identity.values())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError where there is none, or it is damaged."""
        path = folder / RESULT
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise OtterError(
                f"{path} cannot be read as a result of lm-eval", hint="run it again"
            ) from error
