"""Bad training data, each kind by the message that `otter train` ends with."""

import json
from pathlib import Path

import pytest

from tests.support.training import REWARD, TOXICITY, small_graft, write_data, write_recipe

PAIR = b'{"chosen": "a good one", "rejected": "a bad one"}\n'
LABEL = b'{"text": "abc", "toxicity": 1}\n'


def _wrong(pair: str) -> bytes:
    return PAIR * 3 + pair.encode() + b"\n"


BAD = {
    "missing column": ("pairs", _wrong('{"chosen": "x"}'), "line 4: no column 'rejected'"),
    "empty text": (
        "pairs", _wrong('{"chosen": " ", "rejected": "y"}'), "line 4: 'chosen' is empty"
    ),
    "identical pairs": (
        "pairs", b'{"chosen": "x", "rejected": "x"}\n' * 3 + PAIR,
        "3 of 4 pairs are identical in the tokens that are read",
    ),
    "label out of range": (
        "labelled", LABEL + b'{"text": "abc", "toxicity": 1.5}\n',
        "line 2: 'toxicity' is 1.5, outside 0 to 1",
    ),
    "undecodable bytes": ("pairs", PAIR + b'{"chosen": "\xff"}\n', "line 2: byte 13 (0xff) is not"),
    "all truncated": (
        "pairs", (json.dumps({"chosen": "a" * 99, "rejected": "b" * 99}) + "\n").encode() * 40,
        "(100.0 %) are longer than 32 tokens and would be cut; 5.0 % is allowed",
    ),
    "one example only": ("pairs", PAIR, "1 example, at least 2 are needed"),
    "0 bytes": ("pairs", b"", "the file is empty (0 bytes)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_has_its_message(otter_here, tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    file, content, message = BAD[kind]
    write_data(tmp_path)
    (tmp_path / f"{file}.jsonl").write_bytes(content)
    signal = {"reward": REWARD} if file == "pairs" else {"toxicity": TOXICITY}
    signal = {name: {**section, "held_out": None} for name, section in signal.items()}
    folder = small_graft(tiny_llama, tmp_path / "graft", *signal)
    done = otter_here("train", folder, "--recipe", write_recipe(tmp_path, signal), "--json")
    assert done.returncode == 2 and done.stdout == ""
    assert message in " ".join(done.stderr.split()), done.stderr
    assert "hint: " in done.stderr
    assert not (folder / "training").exists()
