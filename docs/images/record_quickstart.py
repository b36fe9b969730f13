"""Records the quick start on a real model, and draws the recording as an animated SVG.

    python docs/images/record_quickstart.py record MODEL.gguf --work DIR
    python docs/images/record_quickstart.py draw

`record` runs the commands, which takes minutes, and writes quickstart.json: each command, its
seconds and all that it printed, with colours. `draw` makes quickstart.svg of it. It leaves out
lines in the middle of long output, and marks the place with dots. Waiting is shortened; the
seconds beside each command are those of the recording.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.color import ColorType
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROMPT = "How do I iron a shirt?"
COMMANDS = [
    "otter import model.gguf base",
    "otter graft base out --signal reward",
    "otter train out --pairs pairs.jsonl",
    "otter verify out",
    f'otter generate out "{PROMPT}" --max-new-tokens 28',
    f'otter generate out "{PROMPT}" --max-new-tokens 28 --guide reward:2',
]
# First and last lines of each output that the drawing shows.
SHOWN = [(1, 1), (7, 2), (0, 7), (0, 8), (5, 0), (4, 0)]
COLUMNS, ROWS = 88, 24
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-HJKSTfhl]")
_PARTS = re.compile(r"(\n|\r(?!\n)|\x1b\[[0-9;?]*[A-HJKSTfhl])|\r(?=\n)")


def record(model: Path, work: Path) -> list[dict[str, Any]]:
    """Runs the commands in `work`, and returns what each printed."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, work / "model.gguf")
    shutil.copyfile(ROOT / "examples/data/kind-answers.jsonl", work / "pairs.jsonl")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    steps = []
    for command in COMMANDS:
        arguments = [sys.executable, "-m", "otter_cli", *shlex.split(command)[1:]]
        begin = time.monotonic()
        printed = _on_terminal(arguments, work, environment)
        steps.append(
            {
                "command": command,
                "seconds": round(time.monotonic() - begin, 1),
                "output": screen(printed.replace(f"{work.resolve()}/", "")),
            }
        )
        sys.stderr.write(f"{command}: {steps[-1]['seconds']} s\n")
    return steps


def _on_terminal(arguments: list[str], work: Path, environment: dict[str, str]) -> str:
    """Everything that a command writes to a terminal. Raises CalledProcessError if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(
        arguments, cwd=work, env=environment, stdin=its, stdout=its, stderr=its, close_fds=True
    )
    os.close(its)
    parts = []
    # The terminal ends with the command: then reading fails, or gives nothing.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            parts.append(part)
    os.close(ours)
    if code := process.wait():
        raise subprocess.CalledProcessError(code, arguments, b"".join(parts))
    return b"".join(parts).decode()


def screen(printed: str) -> list[str]:
    """What is left on the screen at the end: progress bars have drawn over themselves."""
    lines, row, fresh = [""], 0, False
    for part in _PARTS.split(printed):
        if part is None:
            continue
        if part == "\n":
            row, fresh = row + 1, False
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            fresh = True
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row = max(0, row - int(up[1] or 1))
        elif part in ("\x1b[K", "\x1b[2K"):
            lines[row] = ""
        elif part and not _CONTROL.fullmatch(part):
            lines[row] = part if fresh else lines[row] + part
            fresh = False
    while lines and not plain(lines[-1]):
        lines.pop()
    return lines


def plain(line: str) -> str:
    """A line without its colours."""
    return Text.from_ansi(line).plain.rstrip()


def draw(steps: list[dict[str, Any]]) -> str:
    """The animated SVG: lines appear one after another, and the screen scrolls."""
    rows, now = [], 0.4
    for step, shown in zip(steps, SHOWN, strict=True):
        typing = 0.02 * len(step["command"]) + 0.2
        rows.append((now, typing, _command_line(step)))
        now += typing + 0.4
        for line in _excerpt(step["output"], *shown):
            rows.append((now, 0.0, Text.from_ansi(line)))
            now += 0.09
        rows.append((now, 0.0, Text("")))
        now += 1.1
    return _svg(rows, now + 4)


def _command_line(step: dict[str, Any]) -> Text:
    line = Text.assemble(("$ ", "bold green"), (step["command"], "bold white"))
    seconds = f"{step['seconds']:.0f} s"
    return line.append(seconds.rjust(COLUMNS - len(line)), "bright_black")


def _excerpt(lines: list[str], first: int, last: int) -> list[str]:
    # A text is shown while it is written, and again with the colours of its signal.
    again = [number for number, line in enumerate(lines) if plain(line) == PROMPT]
    lines = lines[again[-1] :] if again else lines
    if not last:
        return lines[:first]
    return [*lines[:first], "\x1b[2m...\x1b[0m", *lines[-last:]]


_WIDTH, _HEIGHT, _LEFT, _TOP = 8.4, 20, 18, 56
_FONT = "14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"
_PAGE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" \
aria-label="A terminal: import, graft, train, verify, generate">
<style>
text {{ font: {font}; white-space: pre }}
.row {{ animation: {total}s step-end infinite }}
.screen {{ transform: translateY({end}px); animation: scroll {total}s step-end infinite }}
{rules}
@media (prefers-reduced-motion: reduce) {{ .row, .screen {{ animation: none }} }}
</style>
<rect width="100%" height="100%" rx="10" fill="#1b1d23"/>
<circle cx="22" cy="22" r="6" fill="#ff5f57"/><circle cx="42" cy="22" r="6" fill="#febc2e"/>\
<circle cx="62" cy="22" r="6" fill="#28c840"/>
<svg y="{top}" width="{width}" height="{inner}"><g class="screen">
{rows}
</g></svg></svg>
"""


def _svg(rows: list[tuple[float, float, Text]], total: float) -> str:
    end = -_HEIGHT * max(0, len(rows) - ROWS)
    rules = [
        _rule(number, len(line), at, typing, total)
        for number, (at, typing, line) in enumerate(rows)
    ]
    stops = [(0.0, 0), *((rows[n][0], -_HEIGHT * (n + 1 - ROWS)) for n in range(ROWS, len(rows)))]
    scroll = "".join(f"{100 * at / total:.2f}%{{transform:translateY({y}px)}}" for at, y in stops)
    rules.append(f"@keyframes scroll{{{scroll}100%{{transform:translateY({end}px)}}}}")
    drawn = [f'<g class="row r{n}">{_line(line, n)}</g>' for n, (_, _, line) in enumerate(rows)]
    return _PAGE.format(
        width=round(_LEFT * 2 + COLUMNS * _WIDTH),
        height=_TOP + ROWS * _HEIGHT + 8,
        inner=ROWS * _HEIGHT + 8,
        top=_TOP - 16,
        end=end,
        font=_FONT,
        total=f"{total:.1f}",
        rules="\n".join(rules),
        rows="\n".join(drawn),
    )


def _rule(number: int, length: int, at: float, typing: float, total: float) -> str:
    """When a row appears: letter by letter where it is typed, at once otherwise."""
    start, end = (100 * moment / total for moment in (at, at + typing))
    if typing:
        hidden, whole = "clip-path:inset(0 100% 0 0)", "clip-path:inset(0 0 0 0)"
        steps = f"animation-timing-function:steps({length})"
        stops = f"0%{{{hidden}}}{start:.2f}%{{{hidden};{steps}}}{end:.2f}%,100%{{{whole}}}"
    else:
        stops = f"0%{{opacity:0}}{start:.2f}%,100%{{opacity:1}}"
    return f"@keyframes r{number}{{{stops}}}.r{number}{{animation-name:r{number}}}"


def _line(line: Text, number: int) -> str:
    """The pieces of one line, each at its column."""
    y, parts = number * _HEIGHT + 16, []
    spans = [(s.start, s.end, _style(s.style)) for s in line.spans]
    bounds = sorted({0, len(line), *(edge for start, end, _ in spans for edge in (start, end))})
    for begin, stop in pairwise(bounds):
        piece = line.plain[begin:stop]
        if not piece.strip():
            continue
        style = _style(line.style)
        for start, end, added in spans:
            if start <= begin and stop <= end:
                style += added
        bold = ' font-weight="bold"' if style.bold else ""
        parts.append(
            f'<text x="{_LEFT + begin * _WIDTH:.1f}" y="{y}" fill="{_colour(style)}"{bold} '
            f'textLength="{len(piece) * _WIDTH:.1f}" xml:space="preserve">'
            f"{escape(piece, False)}</text>"
        )
    return "".join(parts)


def _style(style: str | Style) -> Style:
    return style if isinstance(style, Style) else Style.parse(style)


def _colour(style: Style) -> str:
    colour = style.color
    if colour is None or colour.type == ColorType.DEFAULT:
        return "#9aa0aa" if style.dim else "#e6e6e6"
    return colour.get_truecolor(MONOKAI).hex


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["record", "draw"])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=Path("quickstart"))
    arguments = parser.parse_args()
    stored = HERE / "quickstart.json"
    if arguments.action == "record":
        steps = record(arguments.model, arguments.work)
        stored.write_text(json.dumps({"columns": COLUMNS, "steps": steps}, indent=1) + "\n")
    (HERE / "quickstart.svg").write_text(draw(json.loads(stored.read_text())["steps"]))


if __name__ == "__main__":
    main()
