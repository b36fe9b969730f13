"""Rows of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.library_errors import library_reads
from otter_cli.data.records import Record

_HINT = "the file is not a whole parquet file: fetch or write it again"


def parquet_records(path: Path) -> Iterator[Record]:
    """Raises OtterError for a file that is damaged, empty or not there."""
    from pyarrow.parquet import ParquetFile

    try:
        if not path.stat().st_size:
            raise OtterError(f"{path}: the file is empty (0 bytes)", hint="fetch or write it again")
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    before = 0
    with library_reads(path, "the rows", library="pyarrow", hint=_HINT):
        for batch in ParquetFile(path).iter_batches():
            for number, values in enumerate(batch.to_pylist(), before + 1):
                yield Record(path, number, values, "row")
            before += len(batch)
