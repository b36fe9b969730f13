import gzip
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLinesWriter, numbered_jsonlines, read_jsonlines


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as lines:
        lines.append({"step": 1, "text": "naïve\nline"})
        # The record is flushed, so another reader sees it.
        assert list(read_jsonlines(path)) == [{"step": 1, "text": "naïve\nline"}]
    with JsonLinesWriter(path) as lines:
        lines.append({"step": 2})
    assert [record["step"] for record in read_jsonlines(path)] == [1, 2]


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert list(read_jsonlines(path)) == [{"step": 1}]
    with pytest.raises(OtterError, match="line 2"):
        list(read_jsonlines(path, torn_ok=False))


@pytest.mark.parametrize(
    ("tail", "steps"),
    [(b'{"step": 2, "lo', [1, 3]), (b'{"step": 2}', [1, 2, 3]), (b"", [1, 3])],
)
def test_a_torn_last_line_does_not_spoil_the_next(
    tmp_path: Path, tail: bytes, steps: list[int]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    with JsonLinesWriter(path) as lines:
        lines.append({"step": 3})
    assert [record["step"] for record in read_jsonlines(path, torn_ok=False)] == steps


@pytest.mark.parametrize("line", [b"no json", b"[1]", b"\xff", b"[" * 100_000])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"{}\n\n" + line + b"\n{}\n")
    with pytest.raises(OtterError, match="line 3") as caught:
        list(read_jsonlines(path))
    assert caught.value.hint


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\n{"a": 1}\n\n{"a": 2}')
    assert list(numbered_jsonlines(path)) == [(2, {"a": 1}), (4, {"a": 2})]


def test_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert list(read_jsonlines(path)) == [{"a": 1}]


@pytest.mark.parametrize("cut", [1, 5, 12, 25])
def test_damaged_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:cut])
    with pytest.raises(OtterError, match="damaged gzip"):
        list(read_jsonlines(path))


def test_gzip_in_name_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(OtterError, match="damaged gzip"):
        list(read_jsonlines(path))


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match=r"none\.jsonl: No such file"):
        list(read_jsonlines(tmp_path / "none.jsonl"))
    with pytest.raises(OtterError, match="No such file"):
        JsonLinesWriter(tmp_path / "none" / "metrics.jsonl")
