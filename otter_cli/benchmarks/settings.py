"""run.yaml: everything that decides what is generated. Its digest is the run's key."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from otter_cli.core.digests import sha256_json

SCHEMA_VERSION = 1

_NAMES = ("name", "file", "label")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DrawnRecord(_Part):
    """Lines of the file that a limit kept of `of`, drawn by `seed` across categories; of texts of
    pairs and of held-out rows their places, from 1."""

    seed: int
    of: int
    lines: list[int]


class PromptsRecord(_Part):
    """Which prompts: `digest` is of their texts as used, `truncated` counts those cut to fit.
    `drawn`: of a limit, which lines it kept."""

    file: str
    digest: str
    count: int
    truncated: int
    drawn: DrawnRecord | None = None


class ModelRecord(_Part):
    """A folder that took part: its name is for people, its digests decide."""

    name: str
    kind: Literal["otter", "reward-model", "language-model", "encoder", "probe"]
    base: str | None = None
    weights: str


class MethodRecord(_Part):
    """One way of generating: the models it uses and how it is steered or drafted."""

    label: str
    models: list[ModelRecord]
    steering: dict[str, Any] = Field(default_factory=dict)


class RunSettings(_Part):
    """Names of files and folders are recorded and left out of the key: digests stand for them."""

    schema_version: int = SCHEMA_VERSION
    benchmark: str
    prompts: PromptsRecord
    methods: dict[str, MethodRecord]
    sampling: dict[str, Any]
    samples_per_prompt: int
    batch: int
    # Prompts that share a call.
    together: int = 1
    seed: int

    @property
    def key(self) -> str:
        """Equal for equal settings, wherever the files lie."""
        return sha256_json(self._deciding())

    def _deciding(self) -> dict[str, Any]:
        # Runs from before prompts could share a call keep their keys.
        unsaid = {"together"} if self.together == 1 else set()
        decides: dict[str, Any] = _without_names(self.model_dump(mode="json", exclude=unsaid))
        # The digest says which prompts they are.
        decides["prompts"].pop("drawn")
        return decides

    def differences(self, other: "RunSettings") -> list[str]:
        """Dotted names of the settings in which two runs differ, as far as they decide."""
        mine, theirs = (_flat(settings._deciding()) for settings in (self, other))
        return sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_names(v) for k, v in value.items() if k not in _NAMES}
    return [_without_names(item) for item in value] if isinstance(value, list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return found
