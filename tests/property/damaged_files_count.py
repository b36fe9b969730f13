"""How often small files of a graft were spoilt, and what became of it.

python -m tests.property.damaged_files_count --out results/robustness/records.json
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.verification.proof import read_proof, request_of
from tests.property.mutations import mutate

FILES = ("otter.json", "config.json", "tokenizer.json", "tokenizer_config.json", "proof.json")
COUNT, SEED = 3000, 20261129
# Reading is bounded: nothing may take longer, whatever a file says.
SECONDS = 5.0


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


BY_FILE_SYSTEM: dict[str, Callable[[Path], None]] = {
    "pipe": replaced(os.mkfifo),
    "device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "terabyte": replaced(lambda path: sparse(path, 2**40)),
    "gigabyte": replaced(lambda path: sparse(path, 2**30)),
    "link outside": replaced(lambda path: path.symlink_to("/etc/passwd")),
    "link to itself": replaced(lambda path: path.symlink_to(path)),
    "link to a sibling": replaced(lambda path: path.symlink_to("model.safetensors")),
    "folder": replaced(Path.mkdir),
    "empty": replaced(Path.touch),
    "absent": Path.unlink,
}


def spoilt_records(folder: Path, count: int, seed: int = SEED) -> dict[str, Counter[str]]:
    """Of each file: how often a spoilt one was refused, in our words, and how often it was opened.
    `folder` is a graft with files of its own and a proof."""
    random, found = Random(seed), {file: Counter[str]() for file in FILES}
    for _ in range(count):
        file = random.choice(FILES)
        path = folder / file
        sound = path.read_bytes()
        how = _spoil(path, sound, random)
        started = time.monotonic()
        try:
            _open(folder, file)
            found[file]["opened"] += 1
            _check_opened(file, how, path, sound)
        except OtterError as error:
            _check_refusal(error, file, how)
            found[file]["refused"] += 1
        assert time.monotonic() - started < SECONDS, f"{file}, {how}"
        found[file][how] += 1
        # After anything else the spoilt file stays where it is, to be looked at.
        _restore(path, sound)
    return found


def _spoil(path: Path, sound: bytes, random: Random) -> str:
    if random.random() < 0.15:
        how = random.choice(sorted(BY_FILE_SYSTEM))
        BY_FILE_SYSTEM[how](path)
        return how
    content = mutate(path.name, sound, random)
    if path.name == "proof.json" and random.random() < 0.7:
        content = _signed(content)
    path.unlink()
    path.write_bytes(content)
    return "mutated"


def _signed(content: bytes) -> bytes:
    """With a digest that fits: whoever spoils a proof on purpose can do that."""
    try:
        record = json.loads(content)
        told = {name: value for name, value in record.items() if name != "sha256"}
        return json.dumps({**told, "sha256": sha256_json(told)}).encode()
    except (ValueError, AttributeError):
        return content


def _open(folder: Path, file: str) -> None:
    if file == "proof.json":
        request_of(read_proof(folder / file))
    else:
        open_graft(folder)


def _check_opened(file: str, how: str, path: Path, sound: bytes) -> None:
    """A file of the base opens with its own bytes alone; a record and a proof may say otherwise
    things that nothing depends on."""
    assert how == "mutated", f"{file} as {how} was opened"
    if file not in ("otter.json", "proof.json"):
        assert path.read_bytes() == sound, f"{file} was opened though it changed"


def _check_refusal(error: OtterError, file: str, how: str) -> None:
    # A configuration that opens may ask for a family, or sizes, that an insertion does not fit.
    named = (file, "otter.json", "/graft/", "family", "is not supported")
    assert error.hint and any(part in error.what for part in named), f"{how}: {error.what}"
    assert (error.what + error.hint).isprintable() and len(error.what) < 600, error.what


def _restore(path: Path, sound: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()
    path.write_bytes(sound)


def write_graft(base: Path, folder: Path) -> Path:
    """A graft with files of its own, and its proof beside them."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.core.atomic import write_json
    from otter_cli.graft.surgery import graft
    from otter_cli.verification.agenda import VerificationRequest
    from otter_cli.verification.grid import Grid
    from otter_cli.verification.proof import proof_record
    from otter_cli.verification.report import decide
    from otter_cli.verification.run_verification import verify
    from tests.support.grafts import plan_for

    graft(Checkpoint.open(base), folder, plan_for(base, hidden=8, heads=2, ffn=8), mode="copy")
    report = verify(VerificationRequest(folder, base, Grid(), static_only=True))
    write_json(folder / "proof.json", proof_record(report, decide(report)))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from tests.support.checkpoints import write_checkpoint

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_checkpoint(root / "base", "llama")
        found = spoilt_records(write_graft(root / "base", root / "graft"), COUNT)
        shutil.rmtree(root / "graft")
    record = {
        "spoilt": {file: dict(sorted(counts.items())) for file, counts in found.items()},
        "seed": SEED,
        "provenance": provenance(
            [Path(sys.executable).name, "-m", "tests.property.damaged_files_count"]
        ),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["spoilt"], indent=2))


if __name__ == "__main__":
    main()
