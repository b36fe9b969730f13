"""Two sentiment lexicons by different authors: VADER labels training texts, AFINN judges.

A judge of its own makes sure that guidance is not scored by what it was trained on.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError

_REQUIRED_PACKAGES = {"vaderSentiment": "vaderSentiment", "afinn": "afinn"}


def vader(text: str) -> float:
    """How positive a text is, from 0 to 1, by VADER's compound score (Hutto and Gilbert 2014)."""
    return (float(_vader().polarity_scores(text)["compound"]) + 1) / 2


def afinn_positive(prompt: str, response: str) -> float:
    """1 where the words of the response sum to a positive AFINN score (Nielsen 2011), else 0."""
    return float(_afinn().score(response) > 0)


def afinn_digest() -> str:
    """What identifies the judge: the package and its version."""
    return sha256_json({"afinn": version("afinn"), "rule": "score > 0"})


def require_lexicons() -> None:
    """Raises OtterError, with the line to type, where a lexicon is not installed."""
    for module, package in _REQUIRED_PACKAGES.items():
        try:
            version(package)
        except PackageNotFoundError:
            raise OtterError(
                f"the demo needs the package {package}, which is not installed ({module})",
                hint="pip install 'otter-cli[demo]'",
            ) from None


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@cache
def _afinn() -> Any:
    from afinn import Afinn

    return Afinn()
