"""Rewards, toxicity scores and future tokens beside a frozen language model's own logits.

`load(folder)` gives a grafted model that answers from Python; see `otter_cli.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otter_cli.api.generated_text import GeneratedText
    from otter_cli.api.model import Otter, load


__version__ = "0.1.0"
__all__ = ["GeneratedText", "Otter", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports the Python interface on first use: the command line starts without torch."""
    if name in {"GeneratedText", "Otter", "load"}:
        from otter_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
