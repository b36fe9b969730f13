"""Labelled texts as a monitor reads them: from a recipe's held-out rows, or from pairs."""

import random
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from otter_cli.benchmarks.prompts import BenchPrompt, drawn_record
from otter_cli.benchmarks.settings import PromptsRecord
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.data.chat_template import ChatText
from otter_cli.data.drawing import RowDraw, draw_rows
from otter_cli.data.encoding import Encoder
from otter_cli.data.preference import Pair, check_identical


class Stream(NamedTuple):
    """A text and where its offending span ends, in characters; None where nothing offends.
    `partner`: the other text of its pair."""

    text: str
    end: int | None
    partner: str | None = None

    @property
    def kind(self) -> str:
        return "clean" if self.end is None else "offending"


def of_labelled(rows: Sequence[Any]) -> list[Stream]:
    """Rows with one label: without a span, a text offends as a whole, up to its end."""
    return [Stream(row.text, len(row.text) if row.labels[0] >= 0.5 else None) for row in rows]


def of_pairs(pairs: Sequence[Pair]) -> list[Stream]:
    """Both texts of each pair: the rejected one offends by the last word that the chosen lacks."""
    found = []
    for pair in pairs:
        found.append(Stream(pair.chosen, None, pair.rejected))
        found.append(Stream(pair.rejected, _span_end(pair), pair.chosen))
    return found


def _span_end(pair: Pair) -> int:
    clean, offending = pair.chosen.split(), pair.rejected.split()
    changes = SequenceMatcher(None, clean, offending, autojunk=False).get_opcodes()
    # A pair may differ by a removal alone: then the rejected text has no word of its own.
    last = max((j2 for tag, _, _, _, j2 in changes if tag in ("replace", "insert")), default=0)
    if not last:
        return len(pair.rejected)
    end = 0
    for word in offending[:last]:
        end = pair.rejected.index(word, end) + len(word)
    return end


def require_both_kinds(streams: Sequence[Stream], file: Path) -> None:
    """Raises OtterError where all texts offend, or none does."""
    if len({stream.kind for stream in streams}) < 2:
        raise OtterError(
            f"{file}: all of its {len(streams)} texts offend, or none does",
            hint="a monitor is measured on texts of both kinds; raise --limit",
        )


def encode_streams(
    streams: Sequence[Stream],
    file: Path,
    tokenizer: Any,
    *,
    positions: int,
    limit: int | None,
    limit_seed: int = 0,
) -> tuple[list[BenchPrompt], PromptsRecord]:
    """`limit` texts as tokens, from their start: drawn from both kinds by their shares, and one of
    each at least. Texts of pairs that their tokens do not tell apart are left out. Raises
    OtterError where there are none of a kind."""
    require_both_kinds(streams, file)
    indices = _drawn(streams, limit, limit_seed)
    encode = Encoder(tokenizer, positions, eos=False, keep="start")
    whole = encode([streams[index].text for index in indices])
    if whole.truncation.cut:
        warn(f"{whole.truncation.cut} of {len(indices)} texts are cut to {positions} tokens")
    # A monitor reads what is being written: a dialogue up to the end of its last turn.
    texts = list(zip(indices, whole.read, strict=True))
    kept = [(i, ids) for i, ids in texts if ids != _partner_tokens(streams[i], encode)]
    check_identical(len(texts) - len(kept), len(texts), str(file), "texts of pairs")
    require_both_kinds([streams[index] for index, _ in kept], file)
    prompts = []
    for number, (index, ids) in enumerate(kept, 1):
        stream = streams[index]
        by = 0 if stream.end is None else _tokens_until(stream, ids, encode)
        prompts.append(BenchPrompt(str(number), str(stream.text), tuple(ids), offends_by=by))
    draw = RowDraw(limit_seed, len(streams), tuple(index + 1 for index in indices))
    record = PromptsRecord(
        file=file.name,
        digest=sha256_json([[p.name, p.text, p.tokens, p.offends_by] for p in prompts]),
        count=len(prompts),
        truncated=whole.truncation.cut,
        drawn=drawn_record(draw),
    )
    return prompts, record


def _drawn(streams: Sequence[Stream], limit: int | None, seed: int) -> list[int]:
    drawn = draw_rows([stream.kind for stream in streams], limit, seed)
    kinds = {streams[index].kind for index in drawn}
    if len(drawn) > 1 and len(kinds) == 1:
        others = [i for i, stream in enumerate(streams) if stream.kind not in kinds]
        drawn = sorted([*drawn[:-1], random.Random(derive_seed("kind", seed)).choice(others)])
    return drawn


def _partner_tokens(stream: Stream, encode: Encoder) -> list[int] | None:
    return None if stream.partner is None else encode([stream.partner]).read[0]


def _tokens_until(stream: Stream, ids: list[int], encode: Encoder) -> int:
    """How many tokens hold the span: those of the text up to its end, read by itself. A dialogue
    is one piece, and is looked up."""
    if stream.end == len(stream.text):
        return len(ids)
    if isinstance(stream.text, ChatText):
        return encode.place(stream.text, ids, int(stream.end or 1) - 1) + 1
    return min(len(encode([stream.text[: stream.end]]).ids[0]), len(ids))
