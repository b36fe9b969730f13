"""Whether a graft's dialogues are transformers' own: training ids, and greedy text of --chat.

    python -m tests.support.chat_identity GRAFT PROMPTS TO

Training ids: every prompt with two answers as a pair of messages, read by a recipe, against
`apply_chat_template`. Text: `otter generate --chat` against `model.generate` of the same folder, in
the file's dtype, each with its own cache, a prompt at a time. Exit code 1 where anything differs.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from otter_cli.core.provenance import hardware, versions
from otter_cli.signals.config import parse_signal
from otter_cli.training.recipe import load_recipe
from otter_cli.training.signal_data import load_signal_data

SEED, LONGEST = 0, 4096
ANSWERS = (" Yes,\nand more of it.", "No!  None of that.\n")


def drawn(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Prompts of all categories in turn, in an order by seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in random.Random(SEED).sample(rows, len(rows)):
        groups.setdefault(row["category"], []).append(row)
    queues, taken = [groups[name] for name in sorted(groups)], []
    while len(taken) < count and any(queues):
        taken += [queue.pop(0) for queue in queues if queue]
    return taken[:count]


def training(tokenizer: Any, prompts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Of pairs, how many of their texts have transformers' ids."""
    rows = [{"prompt": text, "chosen": ANSWERS[0], "rejected": ANSWERS[1]} for text in prompts]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "pairs.jsonl", "prompt": "prompt", "chat": True}
    section = {"objective": "bradley-terry", "train": source}
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"steps": 1, "max_length": LONGEST, "signals": {"reward": section}})
    )
    data: Any = load_signal_data("reward", load_recipe(recipe), parse_signal("reward"), tokenizer)
    equal, differing = 0, []
    for number, text in enumerate(prompts):
        for ids, answer in zip((data.train.chosen, data.train.rejected), ANSWERS, strict=True):
            said = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            same = ids[number] == tokenizer.apply_chat_template(
                said, tokenize=True, return_dict=False
            )
            equal += same
            if not same:
                differing.append({"prompt": number, "answer": answer})
    return {"texts": 2 * len(prompts), "equal": equal, "different": differing[:20]}


def generated(folder: Path, prompts: Sequence[str], new: int, work: Path) -> list[dict[str, Any]]:
    """What the command itself writes, record by record."""
    file = work / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    command = [sys.executable, "-m", "otter_cli", "generate", folder, "--chat", "--file", file]
    options = ["--batch", "1", "--max-new-tokens", str(new), "--json"]
    done = subprocess.run(
        list(map(str, [*command, *options])), stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@torch.inference_mode()
def plain(model: Any, ids: list[int], new: int) -> list[int]:
    tokens = torch.tensor([ids])
    out = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False
    )
    answer: list[int] = out[0, len(ids) :].tolist()
    return answer


@torch.inference_mode()
def parted(model: Any, ids: list[int], ours: list[int], theirs: list[int]) -> dict[str, Any]:
    """Where two texts part, and how far apart the two best logits are there."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    top = model(torch.tensor([ids + theirs[:at]])).logits[0, -1].float().topk(2).values
    return {"position": at, "gap": float(top[0] - top[1]), "ours": ours[at:], "theirs": theirs[at:]}


def texts(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], new: int) -> dict[str, Any]:
    prompts = [row["turns"][0] for row in rows]
    with tempfile.TemporaryDirectory() as work:
        records = generated(folder, prompts, new, Path(work))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    different, tokens, ended = [], 0, 0
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        said = [{"role": "user", "content": prompts[number]}]
        ids = tokenizer.apply_chat_template(
            said, tokenize=True, return_dict=False, add_generation_prompt=True
        )
        theirs = plain(model, ids, new)
        ours = [token["id"] for token in record["tokens"]]
        tokens, ended = tokens + len(theirs), ended + (record["finish"] == "eos")
        same = ours == theirs and record["text"] == tokenizer.decode(
            theirs, skip_special_tokens=True
        )
        if not same:
            where = {"prompt": number, "category": row["category"], "tokens": len(ids)}
            different.append({**where, **parted(model, ids, ours, theirs)})
        print(f"{number + 1}/{len(rows)} {'same' if same else 'DIFFERENT'}", file=sys.stderr)
    return {
        "prompts": len(rows),
        "categories": len({row["category"] for row in rows}),
        "identical": len(rows) - len(different),
        "new_tokens": new,
        "tokens": tokens,
        "ended_by_eos": ended,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "different": different,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("graft", "prompts", "to"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=24)
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.prompts.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(asked.graft)
    with tempfile.TemporaryDirectory() as work:
        ids = training(tokenizer, [row["turns"][0] for row in rows], Path(work))
    print(f"training ids: {ids['equal']} of {ids['texts']} equal", file=sys.stderr)
    told = texts(asked.graft, tokenizer, drawn(rows, asked.count), asked.new_tokens)
    # The base by its digest: a folder's name says little.
    base = json.loads((asked.graft / "otter.json").read_text())["base"]["files"]
    found = {
        "base": {name: base[name]["sha256"] for name in ("model.safetensors", "tokenizer.json")},
        "file": asked.prompts.name,
        "seed": SEED,
        "training_ids": ids,
        "greedy_text": told,
        "versions": versions(),
        "hardware": hardware(),
    }
    asked.to.parent.mkdir(parents=True, exist_ok=True)
    asked.to.write_text(json.dumps(found, indent=2) + "\n")
    print(asked.to.read_text())
    same = ids["equal"] == ids["texts"] and told["identical"] == told["prompts"]
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
