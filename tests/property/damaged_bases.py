"""A base that is damaged at random: whether the check of `graft`, `doctor` and loading agree on it.

What the check lets pass is grafted, loaded and generated from; there is no third outcome.
"""

import contextlib
import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.families.shape import base_shape
from otter_cli.graft.base_check import check_base
from otter_cli.graft.config import resolve_config
from otter_cli.graft.plan import Plan
from otter_cli.graft.surgery import graft
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.health import check_health
from tests.property.mutations import edit_header, edit_text, mutate

FILES = ("config.json", "generation_config.json", "model.safetensors")
# What doctor looks for beyond whether the base can run.
_BEYOND = ("NaN", "would round them")


def damaged_bases(
    bases: list[Path], root: Path, count: int, seed: int, *, verbose: bool = False
) -> dict[str, int]:
    """Damages a copy of one of `bases` at a time: how many were refused, and how many ran."""
    random, refused = Random(seed), 0
    for number in range(count):
        folder = shutil.copytree(random.choice(bases), root / f"base-{number}")
        damage = _damage(folder, random)
        try:
            refused += not _agree(folder, root / f"graft-{number}")
        except Exception as error:
            raise AssertionError(f"{damage} of {folder}: {error!r}") from error
        shutil.rmtree(folder)
        shutil.rmtree(root / f"graft-{number}", ignore_errors=True)
        if verbose:
            print(number, damage, refused)
    return {"bases": count, "refused": refused, "ran": count - refused}


def _agree(folder: Path, out: Path) -> bool:
    """Whether the base is let pass; then it has to run."""
    try:
        base = Checkpoint.open(folder)
        shape = base_shape(base.config)
        check_base(base, shape)
    except OtterError as error:
        refusal: OtterError | None = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.hint and refusal.what.isprintable(), refusal.what
        # Of another family doctor says no more than that.
        other = "is not supported" in refusal.what
        assert other or not _healthy(folder), f"doctor finds nothing: {refusal.what}"
        return False
    assert _healthy(folder), [str(p) for p in check_health(folder).problems]
    heads = 0 if shape.family.ffn_only else 1
    plan = Plan(
        resolve_config(shape, hidden=min(8, shape.hidden), heads=heads, ffn=min(8, shape.ffn),
                init="normal"), shape,
    )  # fmt: skip
    graft(base, out, plan, checked=True)
    with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        model = OtterForCausalLM.from_pretrained(out)
        if shape.max_positions > 1:
            (row,) = generate(model, [[min(5, shape.vocab - 1)]], Sampling(1))
            assert len(row.tokens) == 1
    return True


def _healthy(folder: Path) -> bool:
    problems = check_health(folder).problems
    return not [p for p in problems if not any(part in p.what for part in _BEYOND)]


def _damage(folder: Path, random: Random) -> str:
    kind = random.choice(["text", "text", "text", "text", "header", "blind", "tensors", "tensors"])
    if kind == "tensors":
        return _change_tensors(folder / "model.safetensors", random)
    name = "model.safetensors" if kind == "header" else random.choice(FILES[:2])
    name = random.choice(FILES) if kind == "blind" else name
    path = folder / name
    sound = path.read_bytes()
    change: Any = {"text": edit_text, "header": edit_header}.get(kind)
    spoilt = mutate(name, sound, random) if change is None else change(sound, random)
    path.write_bytes(spoilt)
    return f"{kind} {name}: {_difference(sound, spoilt) if kind == 'text' else ''}"


def _difference(before: bytes, after: bytes) -> str:
    try:
        old, new = json.loads(before), json.loads(after)
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k) or (k in old) != (k in new)]
        return ", ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}"[:80] for k in keys)
    except (ValueError, AttributeError, TypeError):
        return "no object"


def _change_tensors(path: Path, random: Random) -> str:
    held = load_file(path)
    name = random.choice(sorted(held))
    action = random.choice(["remove", "rename", "add", "type", "shape", "value"])
    if action == "remove":
        del held[name]
    elif action == "rename":
        held[random.choice(["score.weight", name.partition(".")[2] or "x", name + ".x"])] = (
            held.pop(name)
        )
    elif action == "add":
        held[random.choice(["score.weight", "model.step", "v_head.bias"])] = torch.ones(
            random.choice([(), (3,), (2, 32)]), dtype=random.choice([torch.int64, torch.float32])
        )
    elif action == "type":
        held[name] = held[name].to(random.choice([torch.int8, torch.int64, torch.float16]))
    elif action == "shape":
        held[name] = random.choice([held[name].flatten(), held[name][..., :-1].contiguous()])
    else:
        held[name] = held[name].clone()
        held[name].view(-1)[0] = random.choice([float("nan"), float("inf"), 1e30])
    path.unlink()
    save_file(held, path, {"format": "pt"})
    return f"{action} {name}"
