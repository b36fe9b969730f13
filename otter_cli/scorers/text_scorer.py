"""Scorers of single texts, by what a user types as a teacher.

That is a folder, `org/name@revision` of the hub, `detoxify`, or `python:module:function`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.digests import sha256_bytes, sha256_json
from otter_cli.core.errors import OtterError, closest
from otter_cli.core.strict_files import read_small_file
from otter_cli.scorers.text_scorer import class_probabilities, load_labeller

PYTHON_PREFIX = "python:"


@dataclass(frozen=True)
class TextScorer:
    """`score` gives, for each text, one number for each of `names`. `digest` says which scorer it
    was, so that stored labels are never another's."""

    names: tuple[str, ...]
    score: Callable[[Sequence[str]], list[list[float]]]
    digest: str

    def indices_of(self, wanted: Sequence[str]) -> list[int]:
        """Where the names stand. Raises OtterError for one that the scorer does not give."""
        for name in wanted:
            if name not in self.names:
                near = closest(name, self.names)
                raise OtterError(
                    f"the teacher gives no {name!r}",
                    hint=(f"did you mean {near!r}? " if near else "")
                    + f"it gives {', '.join(self.names)}",
                )
        return [self.names.index(name) for name in wanted]


def load_text_scorer(text: str, *, device: str = "cpu") -> TextScorer:
    """Reads `python:module:function`, `detoxify`, a folder, or `org/name@revision` of the hub.

    A function takes one text and returns a number, or a mapping of names to numbers. A folder
    holds a classifier, a reward model, a Detoxify checkpoint or a trained graft. Raises OtterError.
    """
    if text.startswith(PYTHON_PREFIX):
        return _function_scorer(text)
    if text == "detoxify" and not Path(text).is_dir():
        return _released_detoxify_scorer(device)
    return _folder_scorer(text, device)


def _function_scorer(text: str) -> TextScorer:
    module_name, _, name = text.removeprefix(PYTHON_PREFIX).rpartition(":")
    if not module_name or not name:
        raise OtterError(
            f"--teacher {text!r} names no function", hint="python:module:function, or a folder"
        )
    try:
        with _working_folder_first():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise OtterError(
            f"--teacher {text!r}: importing {module_name} failed: {type(error).__name__}: {error}",
            hint="the module must be importable from the working folder",
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise OtterError(
            f"--teacher {text!r}: {module_name} has no function {name!r}", hint="check the name"
        )
    names = tuple(_call_function(function, "a text", text))
    if not names:
        raise OtterError(f"the teacher {text} returned no number", hint="return at least one")
    source = getattr(module, "__file__", None)
    content = read_small_file(source) if source else module_name.encode()
    digest = sha256_json({"function": text, "source": sha256_bytes(content)})

    def score(texts: Sequence[str]) -> list[list[float]]:
        return [_in_order(_call_function(function, t, text), names, text) for t in texts]

    return TextScorer(names, score, digest)


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """A module beside the user's data is found as `python -m` would find it. Afterwards the folder
    comes last, where it hides no module that a library imports late."""
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)


def _call_function(function: Callable[[str], Any], asked: str, what: str) -> dict[str, float]:
    """A function's answer by name. Raises OtterError where it fails, and for anything but finite
    numbers."""
    try:
        answer = function(asked)
    except (Exception, SystemExit) as error:
        raise OtterError(
            f"the teacher {what} failed at {asked[:60]!r}: {type(error).__name__}: {error}",
            hint="it must take any text; labels so far are kept",
        ) from error
    named = answer if isinstance(answer, Mapping) else {"score": answer}
    values = {}
    for name, value in named.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise OtterError(
                f"the teacher {what} returned {value!r} for {name!r} of {asked[:60]!r}",
                hint="return one finite number, or a dict of them",
            )
        values[str(name)] = number
    return values


def _in_order(values: Mapping[str, float], names: Sequence[str], what: str) -> list[float]:
    if set(values) != set(names):
        raise OtterError(
            f"the teacher {what} returned {', '.join(values)}, before {', '.join(names)}",
            hint="return the same names for every text",
        )
    return [values[name] for name in names]


def _released_detoxify_scorer(device: str) -> TextScorer:
    """Detoxify's `original` model, from its own download cache or the network."""
    from otter_cli.scorers.detoxify import load_released_detoxify

    model = load_released_detoxify(device)
    names = tuple(model.class_names)
    return TextScorer(names, _detoxify_scores(model, names), sha256_json({"detoxify": "original"}))


def _detoxify_scores(
    model: Any, names: Sequence[str]
) -> Callable[[Sequence[str]], list[list[float]]]:
    def score(texts: Sequence[str]) -> list[list[float]]:
        predicted = model.predict(list(texts))
        columns = [predicted[name] for name in names]
        # Detoxify gives a bare number for a list of one.
        listed = [c if isinstance(c, Sequence) or hasattr(c, "tolist") else [c] for c in columns]
        return [[float(value) for value in row] for row in zip(*listed, strict=True)]

    return score


def _folder_scorer(text: str, device: str) -> TextScorer:
    from otter_cli.checkpoint.folder import MANIFEST
    from otter_cli.graft.manifest import Manifest
    from otter_cli.model.load import load_config
    from otter_cli.scorers.detoxify import files_digest, load_detoxify
    from otter_cli.scorers.load import scorer_folder

    folder = scorer_folder(text)
    digest = files_digest(folder)
    if any(folder.glob("*.ckpt")):
        model = load_detoxify(folder, device)
        names = tuple(model.class_names)
        return TextScorer(names, _detoxify_scores(model, names), digest)
    if (folder / MANIFEST).is_file():
        signals = [s for c in Manifest.read(folder).insertions for s in c.signals]
        names = tuple(s.name for s in signals if s.kind == "value" and s.size == 1)
        if not names:
            raise OtterError(f"{folder} has no value signal", hint="a teacher scores whole texts")
        return TextScorer(names, _last_token_values(folder, names, device), digest)
    if int(load_config(folder).num_labels) == 1:
        return TextScorer(("reward",), _last_token_values(folder, ("reward",), device), digest)
    classes, score = class_probabilities(folder, device)
    return TextScorer(tuple(classes), score, digest)


def _last_token_values(
    folder: Path, names: Sequence[str], device: str
) -> Callable[[Sequence[str]], list[list[float]]]:
    """Values of a graft or a reward model, which are read off the last token."""
    labellers = [load_labeller(folder, name, eos=False, device=device) for name in names]

    def score(texts: Sequence[str]) -> list[list[float]]:
        columns = [labeller(texts) for labeller in labellers]
        return [list(row) for row in zip(*columns, strict=True)]

    return score
