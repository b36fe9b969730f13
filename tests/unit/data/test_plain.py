import gzip
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.plain import read_texts


def test_paragraphs_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\n  two\r\n \nthree\n\n\n\nfour")
    assert read_texts(path) == ["one\n  two", "three", "four"]
    assert read_texts(path, limit=2) == ["one\n  two", "three"]


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
