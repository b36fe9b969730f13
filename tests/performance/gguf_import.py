"""Importing real models from GGUF: time, memory, and whether logits are those of transformers.

    python -m tests.performance.gguf_import --source SMOLLM2.gguf --source GEMMA.gguf.part00 \\
        --work DIR --out results/surgery/import.json

A source may be in parts. DIR is filled and emptied: the joined source and the import of one model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.gguf.parts import find_gguf_parts, join_parts, read_gguf_headers
from otter_cli.core.atomic import write_json
from otter_cli.core.provenance import provenance
from tests.performance.measure_command import measure

TEXT = """The river had been rising since morning. By noon it covered the lower road, and at four
o'clock Martha could see it from the kitchen window: brown, quick, 12.5 metres across and full of
branches. "We should go," she said. Nobody answered; the radio was saying something about £3,000
and a bridge in São Paulo.\n\ndef area(r):\n    return 3.14159 * r ** 2\n"""
CHAT = [
    {"role": "user", "content": "What is the capital of France, and how many people live there?"}
]


def measured_import(source: Path, work: Path) -> dict[str, Any]:
    """`otter import` as a process of its own: seconds, and the largest resident memory."""
    command = [sys.executable, "-m", "otter_cli", "import", str(source), str(work / "out")]
    run = measure([*command, "--json", "--quiet"], work / "log")
    data = next(json.loads(line) for line in run.output.splitlines() if line.startswith("{"))
    return {
        "model": data["source"]["general"].get("name"),
        "family": data["family"],
        "parameters": data["parameters"],
        "quantisation": data["source"]["quantisation"],
        "source_bytes": sum(file["bytes"] for file in data["source"]["files"]),
        "result_bytes": data["bytes"],
        "seconds": round(run.seconds, 2),
        "cpu_seconds": round(run.cpu_seconds, 2),
        "peak_resident_bytes": run.resident_bytes,
        "peak_over_result": round(run.resident_bytes / data["bytes"], 3),
    }


def compare(source: Path, out: Path) -> dict[str, Any]:
    """Logits on text and on a chat, and token ids, beside transformers' own loader."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    expected = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    tokenizer = AutoTokenizer.from_pretrained(out)
    specials = sorted(expected.get_added_vocab())
    texts = [*TEXT.splitlines(), TEXT, *specials, "x".join(specials[:20])]
    same_ids = all(tokenizer(text).input_ids == expected(text).input_ids for text in texts)
    prompts = [tokenizer(TEXT, return_tensors="pt").input_ids]
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        same_ids &= rendered == expected.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True
        )
        prompts.append(tokenizer(rendered, add_special_tokens=False, return_tensors="pt").input_ids)
    found: dict[str, Any] = {
        "texts": len(texts), "token_ids_equal": same_ids,
        "chat_template": bool(tokenizer.chat_template),
        "tokens": [prompt.shape[1] for prompt in prompts],
    }  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    state = theirs.state_dict()
    found["tensors_equal"] = state.keys() == ours.state_dict().keys() and all(
        torch.equal(value, state[key]) for key, value in ours.state_dict().items()
    )
    # Products may round otherwise where tensors lie at other addresses: give all new ones.
    for parameter in (*theirs.parameters(), *ours.parameters()):
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        found["logits_equal"] = all(
            torch.equal(ours.eval()(prompt).logits, theirs.eval()(prompt).logits)
            for prompt in prompts
        )
    return found


def one_file(source: Path, work: Path) -> Path:
    """The source as transformers can read it."""
    parts = find_gguf_parts(source)
    if parts.layout == "single":
        return source
    join_parts(parts, read_gguf_headers(parts), work / "joined.gguf")
    return work / "joined.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder to fill, and empty")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    options = parser.parse_args()
    rows = []
    for source in options.source:
        options.work.mkdir(parents=True)
        try:
            load = os.getloadavg()[0]
            row = measured_import(source, options.work)
            row |= {"load_before": round(load, 1)}
            rows.append(row | compare(one_file(source, options.work), options.work / "out"))
        finally:
            shutil.rmtree(options.work)
        print(json.dumps(rows[-1], indent=2), flush=True)
    made = provenance(["python", "-m", "tests.performance.gguf_import"])
    write_json(options.out, {"dtype": "bfloat16", "models": rows, **made})


if __name__ == "__main__":
    main()
