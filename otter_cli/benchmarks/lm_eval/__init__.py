"""The bridge to EleutherAI's lm-evaluation-harness: grafts as its models, and its documents as a
test that base and graft agree. Importing this package imports neither the harness nor torch."""

from __future__ import annotations

_MODEL_CLASSES = {"otter": "OtterLM", "otter-guided": "OtterGuidedLM"}


def register_models() -> None:
    """Registers both models in this process. Later harnesses read the entry points
    `lm_eval.models` themselves; 0.4.13 does not."""
    from lm_eval.api.registry import model_registry

    for name, model in _MODEL_CLASSES.items():
        if name not in model_registry.keys():  # noqa: SIM118 - a registry is no mapping
            model_registry.register(name, target=f"{__package__}.models:{model}")
