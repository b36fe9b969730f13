"""Answers a message twice: as the base does, and steered by a signal in the same forward passes.

python examples/guided_chat.py OUT reward 2.0 "What do you think of Mondays?"
"""

import sys

from otter_cli import load


def main(folder: str, signal: str, weight: str, text: str) -> None:
    model = load(folder)
    messages = [{"role": "user", "content": text}]
    plain = model.generate(messages, max_new_tokens=40)
    guided = model.generate(messages, guide={signal: float(weight)}, max_new_tokens=40)
    for name, answer in (("plain", plain), ("guided", guided)):
        print(f"{name}: {answer.text}")
        for score, values in answer.series().items():
            print(
                f"  {score}: {values[-1]:+.3f} at the last token, {values.mean():+.3f} on average"
            )


if __name__ == "__main__":
    main(*sys.argv[1:5])
