"""Values and strings as text for people: bytes, counts, durations, and escaped control characters.

Model output, prompts, names and file paths may hold control characters, which a terminal obeys.
`terminal_text` and `json_text` escape them. `html_text` and `markdown_text` are in reports.
"""

import re

from otter_cli.core.errors import OtterError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", re.ASCII)
_SECONDS_PER_UNIT = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_MAX_SECONDS = 1e7


def bytes_text(count: float) -> str:
    """Decimal units, three digits: 27812680 -> '27.8 MB'."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def count_text(count: float) -> str:
    """Small counts in full, large ones to three digits: 1675 -> '1,675', 6950000 -> '6.95 M'."""
    if abs(count) < 10_000:
        return f"{count:,.0f}"
    return _scaled(count, ("", "k", "M", "B", "T"))


def percent_text(share: float) -> str:
    """A share as a percentage: 0.8649 -> '86.5 %'."""
    return f"{100 * share:.1f} %"


def seconds_text(seconds: float) -> str:
    """A duration: 0.0031 -> '3.1 ms', 125 -> '2 min 05 s', 3720 -> '1 h 02 min'."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def parse_seconds(text: str) -> float:
    """A duration with at most one unit: '30s' -> 30, '2m' -> 120, '1h' -> 3600, '45' -> 45."""
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match[1]) * _SECONDS_PER_UNIT[match[2]] if match else 0.0
    if not 0 < seconds < _MAX_SECONDS:
        raise OtterError(f"{text!r} is no duration", hint="write it like 30s, 2m or 1h")
    return seconds


def _scaled(count: float, units: tuple[str, ...]) -> str:
    scale = 0
    while abs(count) >= 999.5 and scale < len(units) - 1:
        count /= 1000
        scale += 1
    digits = 0 if scale == 0 or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {units[scale]}".rstrip()


# C0 without tab and newline, DEL, C1, line and paragraph separators, overrides of the direction of
# text, and surrogates, which no encoding can write. Marks that real text needs, such as U+200F in
# Arabic and U+200D in emoji, are not included.
_CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def terminal_text(text: str) -> str:
    """`text` with each control character written as an escape, such as `\\x1b`."""
    return _CONTROL_CHARACTERS.sub(_escape_match, text.replace("\r\n", "\n"))


def json_text(encoded: str) -> str:
    """JSON text with every control character in its strings escaped. Its value does not change.

    `json.dumps(ensure_ascii=False)` does not escape DEL, C1 and overrides of direction.
    """
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


def escape_positions(text: str) -> list[int]:
    """The position in `terminal_text(text)` of each character of `text`, and of its end."""
    positions = [0]
    for i, character in enumerate(text):
        removed = character == "\r" and text[i + 1 : i + 2] == "\n"
        positions.append(positions[-1] + (0 if removed else len(terminal_text(character))))
    return positions


def _escape_match(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
