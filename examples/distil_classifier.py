"""Distils a classifier into a stream: it then scores every token, without a second model.

The base continues the prompts, the classifier labels what it wrote, and the stream learns the
labels. At the end both score new texts.

python examples/distil_classifier.py BASE OUT prompts.txt
"""

import re
import sys
from pathlib import Path

from otter_cli import load
from otter_cli.cli import main as otter

WARM = {
    "glad",
    "good",
    "great",
    "happy",
    "help",
    "hello",
    "love",
    "nice",
    "sorry",
    "thank",
    "thanks",
}


def score(text: str) -> float:
    """Your classifier: any function from a text to a number. This one is the share of warm words.

    A model of transformers is called the same way: `pipeline(...)(text)[0]["score"]`.
    """
    words = re.findall(r"[a-z]+", text.lower())
    return sum(word in WARM for word in words) / max(1, len(words))


def run(*arguments: object) -> None:
    """One command of otter, in this process."""
    if code := otter([str(argument) for argument in arguments]):
        sys.exit(code)


def main(base: str, out: str, prompts: str, *options: str) -> None:
    """`options` are passed to `otter train`, such as --samples 8."""
    # The teacher is named by its module, so that the labels say where they come from.
    teacher = f"python:{Path(__file__).stem}:score"
    run("graft", base, out, "--signal", "warmth=value")
    run("train", out, "--teacher", teacher, "--prompts", prompts, *options)
    model = load(out)
    print("classifier", "stream", "text", sep="\t")
    for text in ("I am so happy to help, thanks!", "Go away. I have no time."):
        values = model.score(text).signals["warmth"]
        print(f"{score(text):.3f}", f"{float(values[-1]):.3f}", text, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
