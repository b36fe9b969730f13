"""One safetensors file, read through a memory map: only what is asked for leaves the disk."""

import mmap
import os
from functools import cached_property
from pathlib import Path

from otter_cli.checkpoint.dtypes import STORED, Array, decode
from otter_cli.checkpoint.header import read_header
from otter_cli.core.errors import OtterError, from_os_error


class TensorFile:
    """The tensors of `path`, by name; the header is checked when it is opened."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)

    def read_raw(self, name: str) -> memoryview:
        """The stored bytes, as a read-only view of the map."""
        info = self.header.tensors[name]
        start = self.header.data_start + info.start
        return memoryview(self._map)[start : start + info.nbytes]

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """Values, as float32 where stored as BF16, F16 or F32; possibly a read-only view.

        `rows` index the first axis and `columns` the last; nothing else is copied or converted.
        OtterError for the packed float types that numpy lacks.
        """
        import numpy as np

        info = self.header.tensors[name]
        if info.dtype not in STORED:
            raise OtterError(
                f"{self.path}: {name} is stored as {info.dtype}, which cannot be converted here",
                hint="use the model's bf16, fp16 or fp32 checkpoint",
            )
        stored: Array = np.frombuffer(self.read_raw(name), STORED[info.dtype]).reshape(info.shape)
        if rows is not None:
            stored = stored[rows]
        if columns is not None:
            stored = stored[..., columns]
        return np.require(decode(stored, info.dtype), requirements="A")

    @cached_property
    def _map(self) -> mmap.mmap:
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size != self.header.size:
                    raise OtterError(
                        f"{self.path} changed while it was being read",
                        hint="wait until whatever writes it is done",
                    )
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise from_os_error(error, f"read {self.path}") from error
