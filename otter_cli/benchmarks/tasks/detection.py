"""`otter bench detection`: a signal as a monitor of text that is still being written.

Labelled texts come from the held-out rows of a recipe, or from pairs of a clean and an offending
text. A monitor scores every token. The metrics say which texts it flags, how early and
at what cost."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from otter_cli.benchmarks.benchmark import Benchmark, figure_text, share_text
from otter_cli.benchmarks.methods.detectors import DETECTOR_SIGNAL
from otter_cli.benchmarks.metrics import measures
from otter_cli.benchmarks.metrics.estimates import Measures, quotient
from otter_cli.benchmarks.options import DetectionOptions
from otter_cli.benchmarks.prompts import BenchPrompt, PromptsRecord, row_draw_record
from otter_cli.benchmarks.records import PLAIN, MethodRows, RunData, ScoredSample
from otter_cli.benchmarks.results import BenchmarkName, MethodResult
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Statistic, auroc, f1, mean, ratio
from otter_cli.core.process import derive_seed
from otter_cli.data.chat_template import ChatText
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import PreferencePair, check_identical
from otter_cli.data.splits import RowDraw, draw_rows, rows_digest

FALSE_ALARM_RATE = 0.01
F1_THRESHOLD = 0.5
# Thresholds to stop at are given as rates of false alarms, because monitors differ in scale.
FALSE_ALARM_RATES = (0.01, 0.05, 0.1, 0.2)


class MonitoredText(NamedTuple):
    """A text. `end`: where its offending span ends, in characters; None for a clean text.
    `partner`: the other text of its pair."""

    text: str
    end: int | None
    partner: str | None = None

    @property
    def kind(self) -> str:
        return "clean" if self.end is None else "offending"


@dataclass(frozen=True)
class MonitoredTexts:
    """Texts with the file that they are from. `held_out`: the digest of the rows that a recipe left
    out of training by a share of its file."""

    file: Path
    texts: Sequence[MonitoredText]
    held_out: str | None = None


def load_monitored_texts(options: DetectionOptions) -> MonitoredTexts:
    """The held-out rows of a training recipe, or both texts of pairs. The graft's chat template
    writes dialogues. Raises OtterError, before any model is loaded."""
    recipe, pairs, folder, signal = options.recipe, options.pairs, options.folder, options.signal
    if (recipe is None) == (pairs is None):
        raise OtterError("give either --recipe or --pairs", hint="they name the texts to read")
    if recipe is None:
        assert pairs is not None
        loaded = MonitoredTexts(pairs, texts_of_pairs(_read_pairs(pairs, folder)))
    else:
        loaded = _texts_of_recipe(recipe, options.data, folder, signal)
    require_both_kinds(loaded.texts, loaded.file)
    return loaded


def _texts_of_recipe(path: Path, data: Path | None, folder: Path, signal: str) -> MonitoredTexts:
    from otter_cli.model.load import load_tokenizer
    from otter_cli.signals.config import SignalConfig
    from otter_cli.training.recipe import load_recipe
    from otter_cli.training.signal_data import held_out_rows

    recipe = load_recipe(path, data=data).only([signal])
    training = recipe.signals[signal]
    config = SignalConfig(name=signal, kind="classes", labels=(signal,))
    rows = held_out_rows(training, config, recipe.data_folder, load_tokenizer(folder))
    if not rows:
        raise OtterError(f"{path} holds no rows aside", hint="give it a test file, or held_out")
    train, test = training.train, training.test
    held_out = rows_digest(rows) if test is None else None
    return MonitoredTexts(Path(train.name), texts_of_rows(rows), held_out)


def _read_pairs(file: Path, folder: Path) -> Sequence[PreferencePair]:
    from otter_cli.data.chat_template import ChatTable
    from otter_cli.data.columns import holds_messages, pair_prompt, sample_rows
    from otter_cli.data.pairs import read_pairs
    from otter_cli.model.load import load_tokenizer

    sides, sample = ("chosen", "rejected"), sample_rows(file)
    prompt = pair_prompt(*sides, sample)
    dialogues = any(holds_messages(side, sample) for side in sides)
    table = ChatTable(file, load_tokenizer(folder), sides, prompt) if dialogues else file
    return read_pairs(table, prompt=prompt)


def texts_of_rows(rows: Sequence[Any]) -> list[MonitoredText]:
    """Rows with one label. Rows have no span, so an offending text offends up to its end."""
    return [
        MonitoredText(row.text, len(row.text) if row.labels[0] >= 0.5 else None) for row in rows
    ]


def texts_of_pairs(pairs: Sequence[PreferencePair]) -> list[MonitoredText]:
    """Both texts of each pair. The rejected text offends up to its last word that the chosen text
    lacks."""
    texts = []
    for pair in pairs:
        texts.append(MonitoredText(pair.chosen, None, pair.rejected))
        texts.append(MonitoredText(pair.rejected, _span_end(pair), pair.chosen))
    return texts


def _span_end(pair: PreferencePair) -> int:
    clean, offending = pair.chosen.split(), pair.rejected.split()
    changes = SequenceMatcher(None, clean, offending, autojunk=False).get_opcodes()
    last = max((j2 for tag, _, _, _, j2 in changes if tag in ("replace", "insert")), default=0)
    # If the pair differs only by removed words, the whole rejected text counts as offending.
    if not last:
        return len(pair.rejected)
    end = 0
    for word in offending[:last]:
        end = pair.rejected.index(word, end) + len(word)
    return end


def require_both_kinds(texts: Sequence[MonitoredText], file: Path) -> None:
    """Raises OtterError where all texts offend, or none does."""
    if len({text.kind for text in texts}) < 2:
        raise OtterError(
            f"{file}: all of its {len(texts)} texts offend, or none does",
            hint="a monitor is measured on texts of both kinds; raise --limit",
        )


def encode_texts(
    loaded: MonitoredTexts,
    tokenizer: Any,
    *,
    positions: int,
    limit: int | None,
    limit_seed: int = 0,
) -> tuple[list[BenchPrompt], PromptsRecord]:
    """Texts as tokens, from their start. `limit` of them are drawn from both kinds by their shares,
    at least one of each. Texts of pairs whose tokens are equal are left out. Raises OtterError
    where no text of a kind is left."""
    texts, file = loaded.texts, loaded.file
    require_both_kinds(texts, file)
    indices = _draw_both_kinds(texts, limit, limit_seed)
    encode = Encoder(tokenizer, positions, eos=False, keep="start")
    encoded = encode([texts[index].text for index in indices])
    if encoded.truncation.cut:
        warn(f"{encoded.truncation.cut} of {len(indices)} texts are cut to {positions} tokens")
    # A dialogue is read up to the end of its last turn.
    drawn = list(zip((texts[index] for index in indices), encoded.read_ids, strict=True))
    kept = [(text, ids) for text, ids in drawn if ids != _partner_tokens(text, encode)]
    check_identical(len(drawn) - len(kept), len(drawn), str(file), "texts of pairs")
    require_both_kinds([text for text, _ in kept], file)
    prompts = [
        BenchPrompt(str(n), str(text.text), tuple(ids), offends_by=_offends_by(text, ids, encode))
        for n, (text, ids) in enumerate(kept, 1)
    ]
    draw = RowDraw(limit_seed, len(texts), tuple(index + 1 for index in indices))
    record = PromptsRecord(
        file=file.name,
        digest=sha256_json([[p.name, p.text, p.tokens, p.offends_by] for p in prompts]),
        count=len(prompts),
        truncated=encoded.truncation.cut,
        drawn=row_draw_record(draw),
    )
    return prompts, record


def _draw_both_kinds(texts: Sequence[MonitoredText], limit: int | None, seed: int) -> list[int]:
    drawn = draw_rows([text.kind for text in texts], limit, seed)
    kinds = {texts[index].kind for index in drawn}
    if len(drawn) > 1 and len(kinds) == 1:
        others = [index for index, text in enumerate(texts) if text.kind not in kinds]
        drawn = sorted([*drawn[:-1], random.Random(derive_seed("kind", seed)).choice(others)])
    return drawn


def _partner_tokens(text: MonitoredText, encode: Encoder) -> list[int] | None:
    return None if text.partner is None else encode([text.partner]).read_ids[0]


def _offends_by(text: MonitoredText, ids: list[int], encode: Encoder) -> int:
    """Tokens up to the end of the offending span, which is encoded by itself. A dialogue is one
    piece, so the span's last character is looked up in it."""
    if text.end is None:
        return 0
    if text.end == len(text.text):
        return len(ids)
    if isinstance(text.text, ChatText):
        return encode.token_at_character(text.text, ids, max(text.end, 1) - 1) + 1
    return min(len(encode([text.text[: text.end]]).ids[0]), len(ids))


class Detection(Benchmark):
    """Methods are detectors; `plain` is the base alone, which gives no scores. The threshold of 1 %
    false alarms is that of these texts, and stays fixed while they are resampled."""

    name: ClassVar[BenchmarkName] = "detection"

    @classmethod
    def measures(cls, method: str, data: RunData) -> Measures:
        rows = data.rows[method]
        per_token = _milliseconds_per_token(rows, data)
        cost: Measures = {
            "time_per_token": per_token,
            "time_ratio": quotient(per_token, _milliseconds_per_token(data.rows[PLAIN], data)),
            "memory": mean(np.full(len(data.prompts), float(data.parameter_bytes[method]))),
        }
        if method == PLAIN:
            return cost
        return {**_detection_metrics(scored_streams(rows, data)), **cost}

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        return [_finding(method) for name, method in methods.items() if name != PLAIN]


def scored_streams(rows: MethodRows, data: RunData) -> measures.ScoredStreams:
    """The stored scores with the end of each offending span. Raises OtterError unless there is one
    finite score per token."""
    scores = [_token_scores(group[0]) for group in rows.groups]
    for group, values, prompt in zip(rows.groups, scores, data.prompts, strict=True):
        method = group[0].sample.method
        if len(values) != len(prompt.tokens):
            raise OtterError(
                f"{method} gave {len(values)} scores for the {len(prompt.tokens)} tokens of text "
                f"{prompt.name}",
                hint="a monitor scores every token: their count says when it flagged a text",
            )
        if not np.isfinite(values).all():
            raise OtterError(
                f"{method} gave a score that is not finite, in text {prompt.name}",
                hint="was its training stopped by NaN? look at its metrics, or train it again",
            )
    return measures.ScoredStreams(scores, [prompt.offends_by for prompt in data.prompts])


def _token_scores(row: ScoredSample) -> list[float]:
    return [value for value in row.sample.signals[DETECTOR_SIGNAL] if isinstance(value, float)]


def _detection_metrics(streams: measures.ScoredStreams) -> Measures:
    highest, offending = streams.highest, streams.offending
    threshold = measures.threshold_at(highest, offending, FALSE_ALARM_RATE)
    flagged = (highest >= threshold) & offending
    stops: Measures = {}
    for rate in FALSE_ALARM_RATES:
        stop = measures.threshold_at(highest, offending, rate)
        stops[f"saved_{rate}"] = measures.saved_tokens(streams, stop, offending=True)
        stops[f"lost_{rate}"] = measures.saved_tokens(streams, stop, offending=False)
    return {
        "auroc": auroc(highest, offending),
        "auroc_end": auroc(streams.last, offending),
        "f1": f1(highest >= F1_THRESHOLD, offending),
        "detected": measures.detected(streams, threshold),
        "on_time": measures.on_time(streams, threshold),
        "missed": measures.missed(streams, threshold),
        # Undefined where no offending text is flagged.
        **({"tokens_seen": measures.tokens_seen(streams, threshold)} if flagged.any() else {}),
        **stops,
    }


def _milliseconds_per_token(rows: MethodRows, data: RunData) -> Statistic:
    tokens = [float(len(prompt.tokens)) for prompt in data.prompts]
    return ratio(1000 * rows.sums(lambda row: row.timing.seconds), np.array(tokens))


def _finding(method: MethodResult) -> str:
    seen = "tokens_seen" in method.metrics
    early = f", after {share_text(method, 'tokens_seen')} of their tokens" if seen else ""
    return (
        f"{method.label}: at 1 % false alarms {share_text(method, 'detected')} of the offending "
        f"texts are flagged, {share_text(method, 'on_time')} on time{early}; AUROC "
        f"{figure_text(method, 'auroc')}, {figure_text(method, 'time_ratio')} times the base's "
        f"reading."
    )
