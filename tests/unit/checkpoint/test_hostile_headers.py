"""Every false safetensors header is refused, with what is wrong, where, and a hint."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_cli.checkpoint.safetensors_reader import read_header
from otter_cli.core.errors import OtterError
from tests.unit.checkpoint.crafted import check_error, craft, entry

GOOD = entry("F32", [2], 0, 8)
EIGHT = bytes(8)

RAW: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes is no safetensors"),
    "seven bytes": (b"1234567", "7 bytes is no safetensors"),
    "only a length": ((100).to_bytes(8, "little"), "claims 100 bytes, the file has 8"),
    "length past the end": ((99).to_bytes(8, "little") + b"{}", "claims 99 bytes"),
    "length of 2**63": ((2**63).to_bytes(8, "little") + b"{}", "claims 9,223,372,036"),
    "length of 2**64 - 1": (b"\xff" * 8 + b"{}", "claims 18,446,744"),
    "length zero": (bytes(8), "not a JSON object"),
    "zeros": (bytes(1000), "not a JSON object"),
    "a pickle": (b"\x80\x02}q\x00(X\x06\x00\x00\x00", "claims"),
    "a zip": (b"PK\x03\x04" + bytes(100), "claims"),
    "html": (b"<!DOCTYPE html><html>", "claims"),
}


@pytest.mark.parametrize("case", RAW)
def test_files_that_are_something_else(tmp_path: Path, case: str) -> None:
    content, what = RAW[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(OtterError) as caught:
        read_header(path)
    check_error(caught.value, path, what)


TEXT: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{hello}", "not JSON"),
    "cut JSON": (b'{"a": {"dtype"', "not JSON"),
    "two objects": (b"{}{}", "not JSON"),
    "list": (b"[]", "not a JSON object"),
    "number": (b"1", "not a JSON object"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not a JSON object"),
    "not UTF-8": (b'{"\xff": 1}', "not JSON"),
    "UTF-16": ("{}".encode("utf-16-le"), "not JSON"),
    "half a character": (b'{"__metadata__":{"by":"\\ud83e"}}', "not JSON.*surrogates"),
    "nested too deep": (b'{"a":' + b"[" * 200_000, "nested too deeply"),
    "endless number": (b'{"a":' + b"1" * 10_000 + b"}", "a number of 10,000 digits"),
    "too many entries": (b'{"a":[' + b"0," * 2_000_000 + b"0]}", "far more entries"),
    "too much text": (b'{"a":"\xf0\x9f\xa6\xa6%s"}' % (b"x" * 10**7), "far more text"),
    "tensor twice": (
        b'{"a":%s,"a":%s}' % ((json.dumps(GOOD).encode(),) * 2),
        "'a' occurs twice",
    ),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', "'__metadata__' occurs twice"),
    "metadata key twice": (b'{"__metadata__":{"x":"1","x":"2"}}', "'x' occurs twice"),
    "dtype twice": (
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        "'dtype' occurs twice",
    ),
    "a hundred thousand names, the last twice": (
        b"{" + b",".join(b'"%d":0' % i for i in [*range(100_000), 99_999]) + b"}",
        "'99999' occurs twice",
    ),
}


@pytest.mark.parametrize("case", TEXT)
def test_headers_that_are_no_table(tmp_path: Path, case: str) -> None:
    text, what = TEXT[case]
    path = craft(tmp_path / "model.safetensors", text, EIGHT)
    with pytest.raises(OtterError) as caught:
        read_header(path)
    check_error(caught.value, path, what)


def offsets(*values: Any) -> dict[str, Any]:
    return GOOD | {"data_offsets": list(values)}


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "metadata is a list": ({"__metadata__": [], "a": GOOD}, "__metadata__"),
    "metadata is null": ({"__metadata__": None, "a": GOOD}, "__metadata__"),
    "metadata holds a number": ({"__metadata__": {"x": 1}, "a": GOOD}, "__metadata__"),
    "entry is a number": ({"a": 1}, "'a': needs dtype"),
    "entry is a list": ({"a": []}, "needs dtype"),
    "entry is null": ({"a": None}, "needs dtype"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "needs dtype"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, "needs dtype"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "needs dtype"),
    "one key too many": ({"a": GOOD | {"stride": [1]}}, "no more"),
    "dtype unknown": ({"a": GOOD | {"dtype": "F33"}}, "unknown dtype 'F33'"),
    "dtype in lower case": ({"a": GOOD | {"dtype": "f32"}}, "unknown dtype 'f32'"),
    "dtype is a number": ({"a": GOOD | {"dtype": 32}}, "unknown dtype"),
    "dtype is a list": ({"a": GOOD | {"dtype": ["F32"]}}, "unknown dtype"),
    "dtype is endless": ({"a": GOOD | {"dtype": "F" * 10**6}}, "unknown dtype"),
    "shape is a number": ({"a": GOOD | {"shape": 2}}, "shape is not a list"),
    "shape is null": ({"a": GOOD | {"shape": None}}, "shape is not a list"),
    "size negative": ({"a": GOOD | {"shape": [-2]}}, "shape is not a list"),
    "sizes negative twice": ({"a": GOOD | {"shape": [-1, -2]}}, "shape is not a list"),
    "size fractional": ({"a": GOOD | {"shape": [2.0]}}, "shape is not a list"),
    "size true": ({"a": GOOD | {"shape": [True, 2]}}, "shape is not a list"),
    "size text": ({"a": GOOD | {"shape": ["2"]}}, "shape is not a list"),
    "size over 64 bits": ({"a": GOOD | {"shape": [2**64]}}, "shape is not a list"),
    "sizes that overflow": ({"a": GOOD | {"shape": [2**32, 2**32]}}, "absurd shape"),
    "sizes that wrap to 2": ({"a": GOOD | {"shape": [2**62, 2**62, 2]}}, "absurd shape"),
    "nothing times infinity": ({"a": entry("F32", [0, 2**62, 2**62], 0, 0)}, "absurd shape"),
    "rank 33": ({"a": GOOD | {"shape": [1] * 32 + [2]}}, "absurd shape"),
    "shape too small": ({"a": GOOD | {"shape": [1]}}, "does not take 8 bytes"),
    "shape too large": ({"a": GOOD | {"shape": [3]}}, "does not take 8 bytes"),
    "scalar of 8 bytes": ({"a": GOOD | {"shape": []}}, "does not take 8 bytes"),
    "empty with bytes": ({"a": GOOD | {"shape": [0]}}, "does not take 8 bytes"),
    "wrong width": ({"a": GOOD | {"dtype": "BF16"}}, "does not take 8 bytes"),
    "half a byte": ({"a": entry("F4", [15], 0, 8)}, "does not take 8 bytes"),
    "offsets are a table": ({"a": GOOD | {"data_offsets": {}}}, "two rising"),
    "one offset": ({"a": offsets(8)}, "two rising"),
    "three offsets": ({"a": offsets(0, 4, 8)}, "two rising"),
    "offset negative": ({"a": offsets(-8, 0)}, "two rising"),
    "offsets reversed": ({"a": offsets(8, 0)}, "two rising"),
    "offset fractional": ({"a": offsets(0, 8.0)}, "two rising"),
    "offset true": ({"a": offsets(False, 8)}, "two rising"),
    "offset over 64 bits": ({"a": offsets(2**64, 2**64 + 8)}, "two rising"),
    "past the end": ({"a": entry("F32", [4], 0, 16)}, "truncated"),
    "far past the end": ({"a": entry("U8", [2**50], 0, 2**50)}, "truncated"),
    "overlap": ({"a": entry("U8", [6], 0, 6), "b": entry("U8", [4], 4, 8)}, "'b' overlaps"),
    "same bytes": ({"a": GOOD, "b": GOOD}, "'b' overlaps"),
    "empty inside another": ({"a": GOOD, "b": entry("F32", [0], 4, 4)}, "'b' overlaps"),
    "gap at the start": ({"a": entry("F32", [1], 4, 8)}, "'a' leaves a gap"),
    "gap between": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [4], 4, 8)}, "'b' leaves a gap"),
    "bytes at the end": ({"a": entry("F32", [1], 0, 4)}, "4 bytes at the end"),
    "bytes of nobody": ({}, "8 bytes at the end"),
    "name empty": ({"": GOOD}, "empty name"),
    "name with newline": ({"a\nb": GOOD}, r"'a\\nb': empty name or control"),
    "name with escape": ({"\x1b[31mred": GOOD}, r"x1b\[31mred'.*control"),
    "name with NUL": ({"a\0": GOOD}, "control"),
    "name right to left": ({"a\u202eb": GOOD}, r"u202e.*control"),
    "name with half a character": ({"a\ud800": GOOD}, r"not JSON.*surrogates"),
    "name without width": ({"a\u200b": GOOD}, "control"),
    "name endless and bad": ({"a" * 10**6 + "\n": GOOD}, "control"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_tables_that_describe_no_file(tmp_path: Path, case: str) -> None:
    fields, what = FIELDS[case]
    path = craft(tmp_path / "model.safetensors", fields, EIGHT)
    with pytest.raises(OtterError) as caught:
        read_header(path)
    check_error(caught.value, path, what)


def test_the_nearest_dtype_is_named(tmp_path: Path) -> None:
    path = craft(tmp_path / "f", {"a": GOOD | {"dtype": "BF17"}}, EIGHT)
    with pytest.raises(OtterError) as caught:
        read_header(path)
    assert caught.value.hint == "did you mean BF16?"


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 20, 60])
def test_every_truncation_is_noticed(tmp_path: Path, cut: int) -> None:
    path = craft(tmp_path / "f", {"a": GOOD}, EIGHT)
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(OtterError) as caught:
        read_header(path)
    check_error(caught.value, path, "truncated|claims")


def test_a_header_over_the_limit_is_not_even_read(tmp_path: Path) -> None:
    path = craft(tmp_path / "f", b"{}", length=100_000_001)
    os.truncate(path, 200_000_000)  # sparse: costs no disk
    with pytest.raises(OtterError) as caught:
        read_header(path)
    check_error(caught.value, path, "over the format's limit of 100,000,000")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="No such file"):
        read_header(tmp_path / "none")
    with pytest.raises(OtterError, match="not a regular file"):
        read_header(tmp_path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_pipe, make_zero])
@pytest.mark.timeout(10)
def test_files_that_never_end_are_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "f")
    with pytest.raises(OtterError, match="not a regular file"):
        read_header(tmp_path / "f")
