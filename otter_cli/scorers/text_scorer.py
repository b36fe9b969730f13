"""Scorers of single texts: the teachers, labellers and values that training learns from.

A scorer is a Python function, or a folder with a Detoxify checkpoint, a classifier, a reward model
or a trained graft. Torch is imported late: recipes are read without it."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.core.digests import sha256_bytes, sha256_json
from otter_cli.core.errors import OtterError, did_you_mean, label_index
from otter_cli.core.strict_files import read_small_file
from otter_cli.scorers.detoxify import (
    files_digest,
    load_detoxify,
    load_released_detoxify,
    predict_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch
    from otter_cli.model.otter import OtterForCausalLM

PYTHON_PREFIX = "python:"

# A row of numbers for each text, in order.
ScoreTexts = Callable[[Sequence[str]], list[list[float]]]
# One number for each text, in order. A labeller that reads tokens reads the ids of a `ChatText`.
Labeller = Callable[[Sequence[str]], list[float]]
FolderKind = Literal["detoxify", "graft", "reward-model", "classifier"]


@dataclass(frozen=True)
class TextScorer:
    """`score` gives one number for each of `names` and each text. `digest` identifies the scorer,
    so that stored labels are not used for another one."""

    names: tuple[str, ...]
    score: ScoreTexts
    digest: str

    def indices_of(self, names: Sequence[str]) -> list[int]:
        """The columns of these names. Raises OtterError for one that the scorer does not give."""
        for name in names:
            if name not in self.names:
                raise OtterError(
                    f"the teacher gives no {name!r}",
                    hint=did_you_mean(name, self.names) + f"it gives {', '.join(self.names)}",
                )
        return [self.names.index(name) for name in names]


def load_text_scorer(text: str, *, device: str = "cpu") -> TextScorer:
    """Reads `python:module:function`, `detoxify`, a folder, or `org/name@revision` of the hub.

    A function takes one text and returns a number, or a mapping of names to numbers. Raises
    OtterError.
    """
    if text.startswith(PYTHON_PREFIX):
        return _function_scorer(text)
    if text == "detoxify" and not Path(text).is_dir():
        model = load_released_detoxify(device)
        digest = sha256_json({"detoxify": "original"})
        return TextScorer(tuple(model.class_names), partial(predict_rows, model), digest)
    from otter_cli.scorers.load import scorer_folder

    folder = scorer_folder(text)
    digest = files_digest(folder)
    kind = folder_kind(folder)
    if kind == "graft":
        from otter_cli.graft.manifest import Manifest

        signals = [s for c in Manifest.read(folder).insertions for s in c.signals]
        names = tuple(s.name for s in signals if s.kind == "value" and s.size == 1)
        if not names:
            raise OtterError(f"{folder} has no value signal", hint="a teacher scores whole texts")
        return TextScorer(names, _last_token_values(folder, names, False, device), digest)
    if kind == "reward-model":
        names = ("reward",)
        return TextScorer(names, _last_token_values(folder, names, False, device), digest)
    names, score = _class_scores(folder, kind, device)
    return TextScorer(names, score, digest)


def load_labeller(folder: Path, label: str | None, *, eos: bool, device: str) -> Labeller:
    """`label`: which of a classifier's probabilities, by default the first; for a graft the signal,
    by default `reward`. `eos`: whether a labeller that reads tokens gets texts that have ended.

    Raises OtterError where `folder` gives no such number."""
    kind = folder_kind(folder)
    if kind in ("graft", "reward-model"):
        column, score = 0, _last_token_values(folder, (label or "reward",), eos, device)
    else:
        names, score = _class_scores(folder, kind, device)
        column = label_index(label, names, f"the labeller {folder}")
    return lambda texts: [row[column] for row in score(texts)]


def folder_kind(folder: Path) -> FolderKind:
    """What a folder holds, by its files."""
    from otter_cli.model.load import load_config

    if any(folder.glob("*.ckpt")):
        return "detoxify"
    if (folder / MANIFEST).is_file():
        return "graft"
    return "reward-model" if int(load_config(folder).num_labels) == 1 else "classifier"


def check_reads_dialogues(labeller: Path, folder: Path) -> None:
    """Raises OtterError where a labeller reads other tokens than the base of `folder` writes."""
    from otter_cli.model.load import load_tokenizer

    if folder_kind(labeller) not in ("graft", "reward-model"):
        return
    if load_tokenizer(labeller).get_vocab() != load_tokenizer(folder).get_vocab():
        raise OtterError(
            f"the labeller {labeller} has another vocabulary than the base, and cannot read its "
            "dialogues",
            hint="reads: continuation, or a labeller of the same base",
        )


def _class_scores(
    folder: Path, kind: FolderKind, device: str
) -> tuple[tuple[str, ...], ScoreTexts]:
    """The classes of a Detoxify checkpoint or a stock classifier, and their probabilities. Raises
    OtterError for a missing head."""
    if kind == "detoxify":
        detoxify = load_detoxify(folder, device)
        return tuple(detoxify.class_names), partial(predict_rows, detoxify)
    import torch

    from otter_cli.model.load import load_tokenizer
    from otter_cli.scorers.load import load_classifier

    model, tokenizer = load_classifier(folder, device=device), load_tokenizer(folder)
    names = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    several = model.config.problem_type == "multi_label_classification"

    def probabilities(texts: Sequence[str]) -> list[list[float]]:
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs.to(device)).logits.float()
        rows: list[list[float]] = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        return rows

    return names, probabilities


def _last_token_values(folder: Path, signals: Sequence[str], eos: bool, device: str) -> ScoreTexts:
    """Values of a graft's signals, or of a reward model, at the last token."""
    from otter_cli.data.batches import last_tokens
    from otter_cli.data.datasets import pad_batch
    from otter_cli.data.encoding import Encoder
    from otter_cli.model.load import load_config, load_tokenizer

    positions = int(getattr(load_config(folder), "max_position_embeddings", 1 << 20))
    # A continuation may end with its first token.
    encode = Encoder(load_tokenizer(folder), positions, eos=eos, allow_empty=True)

    def score(texts: Sequence[str]) -> list[list[float]]:
        encoded = encode(texts)
        batch = pad_batch(encoded.ids, encode.pad_id, encoded.lengths).to(device)
        values = [prefix_values(folder, name, batch)[last_tokens(batch)] for name in signals]
        return [list(row) for row in zip(*(column.tolist() for column in values), strict=True)]

    return score


_PrefixValues = Callable[["Batch"], "Tensor"]


def prefix_values(folder: Path, signal: str, batch: Batch) -> Tensor:
    """The value of every prefix, [rows, tokens], without a graph; of a graft's signal, or of a
    reward model. Raises OtterError where the folder gives no values."""
    import torch

    with torch.no_grad():
        return _load_prefix_values(folder, signal, str(batch.input_ids.device))(batch)


@lru_cache(maxsize=1)
def _load_prefix_values(folder: Path, signal: str, device: str) -> _PrefixValues:
    if (folder / MANIFEST).is_file():
        return _graft_values(folder, signal, device)
    from otter_cli.scorers.load import load_reward_model

    model = load_reward_model(folder, device=device).model

    def values(batch: Batch) -> Tensor:
        out = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        scores: Tensor = model.score(out.last_hidden_state).squeeze(-1).float()
        return scores

    return values


@lru_cache(maxsize=1)
def _load_graft(folder: Path, device: str) -> OtterForCausalLM:
    """Cached, since several signals of one graft may teach in turn."""
    from otter_cli.model.otter import OtterForCausalLM

    return OtterForCausalLM.from_pretrained(folder, device=device)


def _graft_values(folder: Path, signal: str, device: str) -> _PrefixValues:
    model = _load_graft(folder, device)
    config = model.signal_configs.get(signal)
    if config is None or config.kind != "value" or config.size != 1:
        raise OtterError(
            f"{folder} has no signal {signal!r} of one value to teach with",
            hint="name one with teacher_signal",
        )

    def values(batch: Batch) -> Tensor:
        out = model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            signals=(signal,),
            logits=False,
            use_cache=False,
        )
        return out.signals[signal].float()

    return values


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
        rows = []
        for each in texts:
            values = _call_function(function, each, text)
            if set(values) != set(names):
                raise OtterError(
                    f"the teacher {text} returned {', '.join(values)}, before {', '.join(names)}",
                    hint="return the same names for every text",
                )
            rows.append([values[name] for name in names])
        return rows

    return TextScorer(names, score, digest)


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Inside, modules of the working folder are found first, as `python -m` does. Afterwards the
    folder comes last, so that it hides no module that a library imports late."""
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


def _call_function(function: Callable[[str], Any], text: str, teacher: str) -> dict[str, float]:
    """The function's numbers by name. Raises OtterError where it fails, or returns anything but
    finite numbers."""
    try:
        returned = function(text)
    except (Exception, SystemExit) as error:
        raise OtterError(
            f"the teacher {teacher} failed at {text[:60]!r}: {type(error).__name__}: {error}",
            hint="it must take any text; labels so far are kept",
        ) from error
    named = returned if isinstance(returned, Mapping) else {"score": returned}
    values = {}
    for name, value in named.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise OtterError(
                f"the teacher {teacher} returned {value!r} for {name!r} of {text[:60]!r}",
                hint="return one finite number, or a dict of them",
            )
        values[str(name)] = number
    return values
