"""Rows of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.data.records import Record


def parquet_records(path: Path) -> Iterator[Record]:
    """Raises OtterError for a file that is damaged, empty or not there."""
    import pyarrow as arrow
    from pyarrow.parquet import ParquetFile

    before = 0
    try:
        if not path.stat().st_size:
            raise OtterError(f"{path}: the file is empty (0 bytes)", hint="fetch or write it again")
        for batch in ParquetFile(path).iter_batches():
            for number, values in enumerate(batch.to_pylist(), before + 1):
                yield Record(path, number, values, "row")
            before += len(batch)
    except arrow.ArrowException as error:
        raise OtterError(
            f"{path}: not a whole parquet file: {error}", hint="fetch or write the file again"
        ) from error
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
