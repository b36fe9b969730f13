"""Rows of files, good and bad: every refusal says file, line, what is wrong and what to do."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.prompts import read_prompts
from otter_cli.data.tables import Record, read_records, read_rows
from otter_cli.data.texts import read_texts


def values(path: Path) -> list[tuple[int, dict]]:
    return [(record.line, dict(record.values)) for record in read_records(path)]


def refusal(path: Path, column: str = "text") -> OtterError:
    with pytest.raises(OtterError) as raised:
        read_rows(path, lambda record: record.text(column))
    assert raised.value.hint, "an error without a hint"
    assert str(path) in raised.value.what
    return raised.value


def test_jsonl_with_blank_lines_a_mark_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "Zo\xc3\xab"}\n\n{"text": "two"}')
    assert values(path) == [(1, {"text": "Zoë"}), (3, {"text": "two"})]


def test_line_separators_inside_json_text_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two\x0bthree"}\n'.replace("\x0b", "\\u000b"))
    assert values(path) == [(1, {"text": "one\u2028two\x0bthree"})]


def test_gz_is_read_as_what_it_holds(tmp_path: Path) -> None:
    for name, data in [("a.jsonl.gz", b'{"text": "x"}\n'), ("a.csv.gz", b"text\nx\n")]:
        (tmp_path / name).write_bytes(gzip.compress(data))
        assert [row for _, row in values(tmp_path / name)] == [{"text": "x"}]


def test_csv_counts_the_lines_of_quoted_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b',text,label\r\n0,"one\r\ntwo, ""three""",1\r\n1,four,0\r\n')
    assert values(path) == [
        (2, {"": "0", "text": 'one\r\ntwo, "three"', "label": "1"}),
        (4, {"": "1", "text": "four", "label": "0"}),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CR LF", "CR"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "no last newline"])
def test_every_kind_of_line_end_is_read(tmp_path: Path, end: bytes, last: bool) -> None:
    """Old spreadsheets write CR alone: each reader sees the same rows and line numbers."""
    expected = [(2, {"text": "a, b", "n": "1"}), (4, {"text": "c", "n": "2"})]
    for name, lines in [
        ("a.csv", [b"text,n", b'"a, b",1', b"", b"c,2"]),
        ("a.tsv", [b"text\tn", b"a, b\t1", b"", b"c\t2"]),
        ("a.jsonl", [b"", b'{"text": "a, b", "n": "1"}', b"", b'{"text": "c", "n": "2"}']),
    ]:
        (tmp_path / name).write_bytes(end.join(lines) + end * last)
        assert values(tmp_path / name) == expected, name
    (tmp_path / "a.txt").write_bytes(end.join([b"one", b"two", b"", b"three"]) + end * last)
    assert [text.splitlines() for text in read_texts(tmp_path / "a.txt")] == [
        ["one", "two"],
        ["three"],
    ]
    assert [prompt.line for prompt in read_prompts(tmp_path / "a.txt")] == [1, 2, 4]


def test_a_quoted_field_keeps_its_own_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,n\r"one\rtwo\nthree",1\rfour,2\r')
    assert values(path) == [
        (2, {"text": "one\rtwo\nthree", "n": "1"}),
        (5, {"text": "four", "n": "2"}),
    ]


def test_a_stray_quote_has_its_own_hint(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,n\n"a "b" c",1\n')
    assert "twice" in refusal(path).hint
    path.write_bytes(b'text,n\n"a b c,1\n')
    assert refusal(path).hint == "is a quote left open?"


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\na, b\t1\n")
    assert values(path) == [(2, {"text": "a, b", "label": "1"})]


def test_nested_columns(tmp_path: Path) -> None:
    record = Record(tmp_path, 1, {"prompt": {"text": "a"}, "turns": ["b", "c"], "x.y": "d"})
    assert [record.text(c) for c in ("prompt.text", "turns.1", "x.y")] == ["a", "c", "d"]
    with pytest.raises(OtterError, match="no column 'txt'") as raised:
        record.text("prompt.txt")
    assert "did you mean 'text'?" in raised.value.hint


def test_at_least(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(5)))
    with pytest.raises(OtterError, match="5 examples, at least 6"):
        read_rows(path, lambda record: record.text("text"), at_least=6)


BAD_JSONL = {
    b'{"text": "x"}\n{"text": \n': "line 2: not JSON",
    b'{"text": "x"}\n["x"]\n': "line 2: a list, not an object",
    b'{"text": "x"}\n{"text": "x"}trailing\n': "line 2: not JSON",
    b'{"text": "x"}\n{"text": "half': "line 2: not JSON",
    b'{"text": "x"}\n{"text": 3}\n': "line 2: 'text' is a number, not text",
    b'{"text": "x"}\n{"text": null}\n': "line 2: 'text' is null, not text",
    b'{"text": "x"}\n{"text": " \\n"}\n': "line 2: 'text' is empty",
    b'{"text": "x"}\n\n{"texts": "x"}\n': "line 3: no column 'text'",
    b'{"text": "x"}\n{"text": "caf\xe9"}\n': "line 2: byte 14 (0xe9) is not UTF-8",
    b'{"text": "x"}\n{"text": "\\ud83d"}\n': "line 2: 'text' holds half a surrogate pair",
    b'{"text": "only one"}\n': "1 example, at least 2",
    b"\n\n": "no examples, at least 2",
    b"": "the file is empty (0 bytes)",
    b"[" * 100_000: "line 1: not JSON",
}


@pytest.mark.parametrize("content", BAD_JSONL, ids=list(BAD_JSONL.values()))
def test_bad_jsonl_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    assert BAD_JSONL[content] in refusal(path).what


BAD_CSV = {
    b"text,label\na,1\nb\n": "line 3: 1 fields, but the header has 2",
    b"text,label\na,1\nb,1,2\n": "line 3: 3 fields, but the header has 2",
    b'text,label\na,1\n"never closed,1\nx,2\n': "line 3: not CSV",
    b"text,text\na,1\nb,2\n": "line 1: the header names 'text' twice",
    b"text,label\na,1\n ,1\n": "line 3: 'text' is empty",
    b"tweet,label\na,1\nb,1\n": "line 2: no column 'text'",
    b"text,label\n": "no examples, at least 2",
    b"text\na\n\xff\xfe\n": "line 3: byte 1 (0xff) is not UTF-8",
}


@pytest.mark.parametrize("content", BAD_CSV, ids=list(BAD_CSV.values()))
def test_bad_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    assert BAD_CSV[content] in refusal(path).what


def test_a_missing_column_shows_the_closest_and_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"Text": "x", "id": 1}\n' * 2)
    assert refusal(path).hint == "did you mean 'Text'? its columns: 'Text', 'id'"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.jsonl").what
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.jsonl").what
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1")
    assert "neither .jsonl nor .csv" in refusal(tmp_path / "rows.arrow").what


@pytest.mark.parametrize(
    "damaged",
    [b"not gzip at all", gzip.compress(b'{"text": "x"}\n' * 99)[:-9], b""],
    ids=["no gzip", "cut off", "0 bytes"],
)
def test_damaged_gzip_is_refused(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(damaged)
    expected = "damaged gzip" if damaged else "empty"
    assert expected in refusal(path).what


def test_a_gzip_of_nothing_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(b""))
    assert "empty (0 bytes)" in refusal(path).what


@pytest.mark.parametrize(
    "module",
    ["pairs", "texts", "prompts", "splits", "tables", "chat_template", "columns"],
)
def test_readers_need_no_torch(module: str) -> None:
    check = f"import sys, otter_cli.data.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
