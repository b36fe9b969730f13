"""Draws the formulas of a page as SVG when the site is built. Pages need no script and no network.

Formulas are written as GitHub reads them: `$...$` in a line, and fenced blocks of `math`.
matplotlib's mathtext sets them; each glyph is stored once a page. The LaTeX source is the label.
"""

import html
import re
from typing import Any

_CODE = re.compile(
    r"```math\n(?P<block>.*?)```|```.*?```|`[^`\n]*`|\$(?P<line>[^$\n]+?)\$", re.DOTALL
)
_MARK = re.compile(r"FORMULA(\d+)END")
# What GitHub's renderer knows and mathtext does not, in mathtext's terms.
_SAME = {
    "lt": "<",
    "gt": ">",
    "le": r"\leq",
    "ne": r"\neq",
    "tfrac": r"\frac",
    "lvert": "|",
    "rvert": "|",
    "Vert": r"\|",
    "bmod": r"\ \mathrm{mod}\ ",
}
_MATRIX = re.compile(r"\\begin\{bmatrix\}(.*?)\\end\{bmatrix\}")
_UNITS_PER_EM = 10.0


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts a mark in place of each formula."""
    formulas: list[tuple[str, bool]] = []

    def mark(match: re.Match[str]) -> str:
        source = match["block"] or match["line"]
        if source is None:
            return match[0]
        formulas.append((" ".join(source.split()), match["block"] is not None))
        return f"FORMULA{len(formulas) - 1}END"

    page.formulas = formulas
    # Only pages of mathematics have formulas: elsewhere a dollar is a shell's.
    return _CODE.sub(mark, markdown) if "```math" in markdown else markdown


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Puts the drawings in place of the marks, and the glyphs before them."""
    if not page.formulas:
        return content
    glyphs: dict[str, str] = {}
    drawn = _MARK.sub(lambda m: draw(*page.formulas[int(m[1])], glyphs), content)
    symbols = "".join(f'<path id="{name}" d="{path}"/>' for name, path in glyphs.items())
    return f'<svg class="glyphs" aria-hidden="true"><defs>{symbols}</defs></svg>\n{drawn}'


def draw(source: str, block: bool, glyphs: dict[str, str]) -> str:
    """One formula as an SVG. New glyphs are added to `glyphs`. Raises ValueError for LaTeX that
    mathtext does not know."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    text = f"${to_mathtext(source)}$"
    properties = FontProperties(size=_UNITS_PER_EM, math_fontfamily="cm")
    width, height, depth = text_to_path.get_text_width_height_descent(text, properties, True)
    placed, outlines, lines = text_to_path.get_glyphs_mathtext(properties, text)
    shapes = []
    # matplotlib keeps outlines at its own size, and gives the scale of each glyph.
    unit = _UNITS_PER_EM / text_to_path.FONT_SCALE
    for glyph, x, y, scale in placed:
        name = "glyph-" + re.sub(r"\W", "-", str(glyph))
        if name not in glyphs:
            glyphs[name] = _path(outlines[glyph])
        shapes.append(
            f'<use href="#{name}" transform="translate({x * unit:.2f} {y * unit:.2f}) '
            f'scale({scale * unit:.4f})"/>'
        )
    shapes += [f'<path transform="scale({unit})" d="{_path(line)}"/>' for line in lines]
    em = [f"{value / _UNITS_PER_EM:.3f}em" for value in (width, height, -depth)]
    drawing = (
        f'<svg class="formula" role="img" aria-label="{html.escape(source)}" '
        f'viewBox="0 0 {width:.2f} {height:.2f}" '
        f'style="width:{em[0]};height:{em[1]};vertical-align:{em[2]}">'
        f'<g transform="translate(0 {height - depth:.2f}) scale(1 -1)">{"".join(shapes)}</g></svg>'
    )
    return f'<span class="formula-block">{drawing}</span>' if block else drawing


def to_mathtext(source: str) -> str:
    """LaTeX with the few commands replaced that mathtext lacks. A matrix of two rows is a fraction
    without a line."""
    source = _MATRIX.sub(_stack, source)
    return re.sub(r"\\([a-zA-Z]+)", lambda m: _SAME.get(m[1], m[0]), source)


def _stack(match: re.Match[str]) -> str:
    top, bottom = (row.replace("&", r"\quad") for row in match[1].split(r"\\"))
    return rf"\genfrac{{[}}{{]}}{{0}}{{0}}{{{top}}}{{{bottom}}}"


def _path(outline: Any) -> str:
    """Points and codes of a glyph as SVG path data."""
    points, codes = (list(part) for part in outline)
    commands = {1: ("M", 1), 2: ("L", 1), 3: ("Q", 2), 4: ("C", 3), 79: ("Z", 0)}
    parts, index = [], 0
    while index < len(codes):
        letter, count = commands[int(codes[index])]
        values = [value for point in points[index : index + count] for value in point]
        parts.append(letter + " ".join(f"{value:.1f}".removesuffix(".0") for value in values))
        index += max(count, 1)
    return "".join(parts)
