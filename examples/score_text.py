"""Prints the signals of a text, token by token.

python examples/score_text.py OUT "You are a wonderful person."
"""

import sys

from otter_cli import load


def main(folder: str, text: str) -> None:
    model = load(folder)
    scored = model.score(text)
    series = scored.series()
    print("token", *series, sep="\t")
    for place, token in enumerate(scored.tokens):
        values = (f"{values[place]:+.3f}" for values in series.values())
        print(repr(token), *values, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:3])
