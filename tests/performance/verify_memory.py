"""The memory of a verification of a large base, beyond that of a base of next to nothing.

    python -m tests.performance.verify_memory --shape llama-134m --work DIR --out FILE.json

Both run the quick grid in processes of their own, a dtype each. What a process takes for Python,
torch and its kernels is the same for both; the rest is to be at most base + insertion + 20 %.
Resident memory counts float32 weights where they are mapped from the file. Where they are
converted to bfloat16, it counts those pages as well, though the system may take them back at any
time: what the process cannot do without is its anonymous memory then. A shape's row is added to
those in FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.dtypes import encode
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_sharded
from otter_cli.core.provenance import provenance
from otter_cli.families.shape import base_shape, expected_tensors
from otter_cli.graft.storage import FILE_STEM
from tests.performance.measure_command import Measured, measure
from tests.support.grafts import random_graft

ALLOWED = 1.2
DTYPES = ("float32", "bfloat16")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 1e4, "dtype": "float32", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
INSERTION = {"hidden": 64, "heads": 2, "ffn": 128}
SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 12,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 256,
}  # fmt: skip
SHAPES = {
    "llama-134m": {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32000,
    },
    # A large base's proportions: a window's logits and cache are little beside its weights.
    "llama-317m-window-128": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 2048,
        "max_position_embeddings": 128,
    },
}  # fmt: skip


def write_base(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shape = base_shape(config)
    forms = dict(expected_tensors(shape)) | {shape.family.head_weight: (shape.vocab, shape.hidden)}
    random = np.random.default_rng(0)
    write_sharded(
        folder,
        "model",
        {name: TensorSpec("F32", form) for name, form in forms.items()},
        lambda name: encode(random.normal(0, 0.02, forms[name]).astype(np.float32), "F32"),
    )
    return folder


def stored(base: Path, graft: Path) -> int:
    """Bytes of all tensors of both."""
    weights = Checkpoint.open(base).weights, ShardedTensors.open(graft, FILE_STEM)
    return sum(info.nbytes for each in weights for info in each.tensors.values())


def verification(base: Path, graft: Path, dtype: str) -> Measured:
    command = [sys.executable, "-m", "otter_cli", "verify", str(graft), "--base", str(base)]
    options = ["--dtype", dtype, "--proof", str(graft.parent / "proof.json")]
    return measure([*command, *options], graft.parent / "log", dict(os.environ))


def measured(work: Path, config: dict[str, Any], insertion: dict[str, int]) -> dict[str, Any]:
    base = write_base(work / "base", {**CONFIG, **config})
    graft = random_graft(base, work / "graft", signals=("reward",), **insertion)
    row: dict[str, Any] = {
        "shape": config,
        "insertion": insertion,
        "tensor_bytes": stored(base, graft),
    }
    for dtype in DTYPES:
        run = verification(base, graft, dtype)
        row[dtype] = {
            "anonymous_bytes": run.anonymous_bytes,
            "resident_bytes": run.resident_bytes,
            "verdict": next(line for line in run.output.splitlines() if "exact" in line).strip(),
        }
    shutil.rmtree(work)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder to fill, and remove")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    options = parser.parse_args()
    small = measured(options.work, SMALL, {"hidden": 8, "heads": 1, "ffn": 8})
    large = measured(options.work, SHAPES[options.shape], INSERTION)
    over = {
        dtype: {
            kind: (large[dtype][kind] - small[dtype][kind]) / large["tensor_bytes"]
            for kind in ("anonymous_bytes", "resident_bytes")
        }
        for dtype in DTYPES
    }
    row = {
        "over_base_and_insertion": over,
        "allowed": ALLOWED,
        "large": large,
        "small": small,
        "provenance": provenance(["tests.performance.verify_memory"]),
    }
    rows = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    rows[options.shape] = row
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"{options.shape}: {over}, {ALLOWED} allowed")


if __name__ == "__main__":
    main()
