"""Labelled texts as a monitor reads them: from a recipe's held-out rows, or from pairs."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.settings import PromptsRecord
from otter_cli.core.console import warn
from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import ChatText
from otter_cli.data.encoding import Encoder
from otter_cli.data.preference import Pair


class Stream(NamedTuple):
    """A text and where its offending span ends, in characters; None where nothing offends."""

    text: str
    end: int | None


def of_labelled(rows: Sequence[Any]) -> list[Stream]:
    """Rows with one label: without a span, a text offends as a whole, up to its end."""
    return [Stream(row.text, len(row.text) if row.labels[0] >= 0.5 else None) for row in rows]


def of_pairs(pairs: Sequence[Pair]) -> list[Stream]:
    """Both texts of each pair: the rejected one offends by the last word that the chosen lacks."""
    found = []
    for pair in pairs:
        found += [Stream(pair.chosen, None), Stream(pair.rejected, _span_end(pair))]
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


def encode_streams(
    streams: Sequence[Stream], file: Path, tokenizer: Any, *, positions: int, limit: int | None
) -> tuple[list[BenchPrompt], PromptsRecord]:
    """The first `limit` texts as tokens, from their start; where they are of one kind, one of the
    other in the last one's place. Raises OtterError where there is none."""
    chosen = _both_kinds(streams, limit or len(streams))
    encode = Encoder(tokenizer, positions, eos=False, keep="start")
    whole = encode([stream.text for stream in chosen])
    if whole.truncation.cut:
        warn(f"{whole.truncation.cut} of {len(chosen)} texts are cut to {positions} tokens")
    prompts = []
    # A monitor reads what is being written: a dialogue up to the end of its last turn.
    read = [ids[:end] for ids, end in zip(whole.ids, whole.lengths, strict=True)]
    for number, (stream, ids) in enumerate(zip(chosen, read, strict=True), 1):
        by = 0 if stream.end is None else _tokens_until(stream, ids, encode)
        prompts.append(BenchPrompt(str(number), str(stream.text), tuple(ids), offends_by=by))
    if not 0 < sum(prompt.offends_by > 0 for prompt in prompts) < len(prompts):
        raise OtterError(
            f"{file}: all of its {len(prompts)} texts offend, or none does",
            hint="a monitor is measured on texts of both kinds; raise --limit",
        )
    record = PromptsRecord(
        file=file.name,
        digest=sha256_json([[p.name, p.text, p.tokens, p.offends_by] for p in prompts]),
        count=len(prompts),
        truncated=whole.truncation.cut,
    )
    return prompts, record


def _both_kinds(streams: Sequence[Stream], limit: int) -> list[Stream]:
    chosen = list(streams[:limit])
    kinds = {stream.end is None for stream in chosen}
    other = next((s for s in streams[limit:] if (s.end is None) not in kinds), None)
    if len(chosen) > 1 and len(kinds) == 1 and other is not None:
        chosen[-1] = other
    return chosen


def _tokens_until(stream: Stream, ids: list[int], encode: Encoder) -> int:
    """How many tokens hold the span: those of the text up to its end, read by itself. A dialogue
    is one piece, and is looked up."""
    if stream.end == len(stream.text):
        return len(ids)
    if isinstance(stream.text, ChatText):
        return encode.place(stream.text, ids, int(stream.end or 1) - 1) + 1
    return min(len(encode([stream.text[: stream.end]]).ids[0]), len(ids))
