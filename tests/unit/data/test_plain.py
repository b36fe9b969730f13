import gzip
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.drawing import LimitedTable
from otter_cli.data.plain import paragraph_records, read_texts


def test_paragraphs_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\n  two\r\n \nthree\n\n\n\nfour")
    assert read_texts(path) == ["one\n  two", "three", "four"]
    assert [record.line for record in paragraph_records(path)] == [3, 6, 10]
    assert len(read_texts(LimitedTable(path, 2))) == 2
    assert len(read_texts(LimitedTable(path, 1), column="story")) == 1


def test_a_column_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"story": "a"}\n{"story": "b"}\n'))
    assert read_texts(path, column="story") == ["a", "b"]


@pytest.mark.parametrize(("content", "what"), [(b"", "0 bytes"), (b"\n \n", "no examples")])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(OtterError, match=what) as raised:
        read_texts(path)
    assert raised.value.hint
