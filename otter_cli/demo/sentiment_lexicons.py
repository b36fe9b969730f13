"""Two sentiment lexicons by different authors: VADER labels training texts, AFINN judges.

The judge differs from the labeller so that guidance is not judged by what it was trained on.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from otter_cli.core.digests import sha256_json
from otter_cli.core.distribution import missing_extra

_REQUIRED_PACKAGES = ("vaderSentiment", "afinn")


def vader(text: str) -> float:
    """The compound score of VADER, scaled to 0 (negative) to 1 (Hutto and Gilbert 2014)."""
    return (float(_vader().polarity_scores(text)["compound"]) + 1) / 2


def afinn_positive(prompt: str, response: str) -> float:
    """1 if the AFINN scores of the response's words sum to more than 0 (Nielsen 2011), else 0."""
    return float(_afinn().score(response) > 0)


def afinn_digest() -> str:
    """The identity of the judge: a digest of the package's version and the rule."""
    return sha256_json({"afinn": version("afinn"), "rule": "score > 0"})


def require_lexicons() -> None:
    """Raises OtterError, with the command to run, if a lexicon is not installed."""
    for package in _REQUIRED_PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            raise missing_extra("otter demo", package, "demo") from None


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@cache
def _afinn() -> Any:
    from afinn import Afinn

    return Afinn()
