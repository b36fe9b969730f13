"""Draws row-costs.svg: what each further row of a decoding step costs.

    python docs/images/row_costs.py

The figures are those of results/performance/, made by `otter bench overhead GRAFT --rows`.
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "results/performance/smollm2-135m-rows-cpu-2-cores-avx512.json"
COLOURS = ("#1f6fb2", "#b2541f", "#3f7f3f")


def main() -> None:
    groups = json.loads(RESULT.read_text())["groups"]
    # Texts as outlines would be the font's; a fixed salt gives the same file every time.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "row-costs", "font.size": 9}
    figure = Figure((6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for group, colour in zip(groups, COLOURS, strict=True):
        lines = [line for line in group["lines"] if line["x"] is not None]
        ratios = [line["ratio"] for line in lines]
        errors = [
            [r["mean"] - r["low"] for r in ratios],
            [r["high"] - r["mean"] for r in ratios],
        ]
        label = group["title"].removeprefix("Rows: ")
        axes.errorbar(
            [line["x"] for line in lines],
            [r["mean"] for r in ratios],
            errors,
            label=label,
            color=colour,
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1,
        )
    axes.set(xlabel="rows in one step", ylabel="time over a step of one row", xscale="log")
    ticks = [1, 2, 3, 4, 6, 8, 16, 32]
    axes.set_xticks(ticks, map(str, ticks), minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(HERE / "row-costs.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
