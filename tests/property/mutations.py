"""Ways to spoil a file: blindly, byte by byte, and with knowledge of what it means."""

import copy
import json
from random import Random
from typing import Any

NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 8, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**400,
    0.5, -0.0, 1e308, "", "F32", "BF16", "F8_E4M3", "F4", "BOOL", "x\n", "\x1b[2J", "\ud800",
    "../a", "/dev/zero", "model.safetensors", "model-00001-of-00002.safetensors", [], [0], [1, 2],
    [0, 8], [8, 0], [-8, 0], [1] * 40, [2**62, 4], {}, {"a": {}}, [[[]]],
]  # fmt: skip


def mutate(name: str, content: bytes, random: Random) -> bytes:
    """`content` of the file called `name`, spoilt in one to three ways."""
    for _ in range(random.choice([1, 1, 2, 3])):
        if random.random() < 0.5:
            content = random.choice(BLIND)(content, random)
        elif name.endswith(".safetensors"):
            content = edit_header(content, random)
        else:
            content = edit_text(content, random)
    return content


def place(content: bytes, random: Random) -> int:
    """A position, half the time near the beginning, where headers are."""
    reach = len(content) if random.random() < 0.5 else min(len(content), 200)
    return random.randint(0, reach)


def flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 4])):
        if changed:
            changed[min(place(content, random), len(changed) - 1)] = random.randrange(256)
    return bytes(changed)


def truncate(content: bytes, random: Random) -> bytes:
    return content[: place(content, random)]


def insert(content: bytes, random: Random) -> bytes:
    at = place(content, random)
    return content[:at] + random.randbytes(random.choice([1, 2, 8, 64])) + content[at:]


def delete(content: bytes, random: Random) -> bytes:
    at = place(content, random)
    return content[:at] + content[at + random.choice([1, 2, 8, 64]) :]


def repeat(content: bytes, random: Random) -> bytes:
    start, end = sorted([place(content, random), place(content, random)])
    return content[:end] + content[start:]


def blank(content: bytes, random: Random) -> bytes:
    start, end = sorted([place(content, random), place(content, random)])
    return content[:start] + bytes(end - start) + content[end:]


BLIND = [flip, flip, truncate, insert, delete, repeat, blank]


def edit_header(content: bytes, random: Random) -> bytes:
    """Change the header's JSON; its length is told rightly, most of the time."""
    length = int.from_bytes(content[:8], "little")
    text = edit_text(content[8 : 8 + length], random)
    told = len(text) if random.random() < 0.9 else random.choice([0, length, 2**63, 2**64 - 1])
    return told.to_bytes(8, "little") + text + content[8 + length :]


def edit_text(text: bytes, random: Random) -> bytes:
    try:
        value = json.loads(text)
    except ValueError:
        return flip(text, random)
    return json.dumps(edit_value(value, random)).encode()


def edit_value(value: Any, random: Random) -> Any:
    """Replace, remove, rename, add or swap somewhere in a JSON value."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.05:
        return copy.deepcopy(random.choice(NASTY))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, other = random.choice(keys), random.choice(keys)
    action = random.choice(["into", "into", "into", "into", "swap", "remove", "rename", "add"])
    if action == "into":
        value[key] = edit_value(value[key], random)
    elif action == "swap":
        value[key], value[other] = value[other], value[key]
    elif action == "remove":
        del value[key]
    elif isinstance(value, list):
        value.append(copy.deepcopy(random.choice(NASTY)))
    else:
        added = value.pop(key) if action == "rename" else copy.deepcopy(value[key])
        value[str(random.choice(NASTY))] = added
    return value
