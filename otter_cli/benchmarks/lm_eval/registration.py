"""The model names `otter` and `otter-guided` in the harness's registry."""

from __future__ import annotations

_MODELS = {"otter": "OtterLM", "otter-guided": "OtterGuidedLM"}


def register() -> None:
    """Makes both names known in this process. Later harnesses read them from the entry points
    `lm_eval.models` by themselves; 0.4.13 does not."""
    from lm_eval.api.registry import model_registry

    for name, model in _MODELS.items():
        if name not in model_registry.keys():  # noqa: SIM118 - a registry is no mapping
            model_registry.register(name, target=f"{__package__}.models:{model}")
