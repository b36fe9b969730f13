"""Calls a graft as one calls a transformers model: its logits are the base's, bit for bit.

python examples/forward_pass.py OUT "Good morning"
"""

import sys

import torch
from transformers import AutoModelForCausalLM

from otter_cli import load


def main(folder: str, text: str) -> None:
    model = load(folder)
    # The grafted folder is still a checkpoint of the base.
    base = AutoModelForCausalLM.from_pretrained(folder)
    inputs = model.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        same = torch.equal(output.logits, base(**inputs).logits)
    print(f"logits {list(output.logits.shape)}, equal to the base's: {same}")
    for name, values in output.signals.items():
        print(f"{name} {list(values.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
