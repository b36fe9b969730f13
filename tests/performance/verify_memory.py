"""The memory of a verification of a large base, beyond that of a base of next to nothing.

    python -m tests.performance.verify_memory --work DIR --out FILE.json

Both run the quick grid in processes of their own. What a process takes for Python, torch and its
kernels is the same for both; the rest is to be at most base + insertion + 20 %.
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
from otter_cli.checkpoint.weights import Weights
from otter_cli.checkpoint.writer import TensorSpec, write_sharded
from otter_cli.core.provenance import provenance
from otter_cli.families import base_shape
from otter_cli.insertion.check import expected_tensors
from otter_cli.insertion.storage import STEM
from tests.performance.measured import Measured, measure
from tests.support.grafts import random_graft

ALLOWED = 1.2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 1e4, "dtype": "float32", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 12,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 256,
}  # fmt: skip
LARGE = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32000,
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
    weights = Checkpoint.open(base).weights, Weights.open(graft, STEM)
    return sum(info.nbytes for each in weights for info in each.tensors.values())


def verification(base: Path, graft: Path) -> Measured:
    command = [sys.executable, "-m", "otter_cli", "verify", str(graft), "--base", str(base)]
    proof = graft.parent / f"{graft.name}.proof.json"
    return measure([*command, "--proof", str(proof)], graft.parent / "log", dict(os.environ))


def measured(work: Path) -> dict[str, Any]:
    rows = {}
    for name, config, insertion in (
        ("small", SMALL, {"hidden": 8, "heads": 1, "ffn": 8}),
        ("large", LARGE, {"hidden": 64, "heads": 2, "ffn": 128}),
    ):
        base = write_base(work / name, {**CONFIG, **config})
        graft = random_graft(base, work / f"{name}-graft", signals=("reward",), **insertion)
        run = verification(base, graft)
        rows[name] = {
            "shape": config,
            "insertion": insertion,
            "tensor_bytes": stored(base, graft),
            "anonymous_bytes": run.anonymous_bytes,
            "resident_bytes": run.resident_bytes,
            "seconds": run.seconds,
            "verdict": next(line for line in run.output.splitlines() if "exact" in line).strip(),
        }
    large, small = rows["large"], rows["small"]
    beyond = large["resident_bytes"] - small["resident_bytes"]
    return {
        **rows,
        "resident_beyond_small": beyond,
        "over_base_and_insertion": beyond / large["tensor_bytes"],
        "allowed": ALLOWED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder to fill, and empty")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    options = parser.parse_args()
    try:
        record = measured(options.work)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    record["provenance"] = provenance(["tests.performance.verify_memory"])
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{record['over_base_and_insertion']:.3f} of base and insertion, {ALLOWED} allowed")


if __name__ == "__main__":
    main()
