"""Fast execution of the inserted stream, behind `model.backend.StreamBackend`."""

from otter_cli.accel.native_library import load_native, native_status
from otter_cli.accel.native_stream import NativeStream

__all__ = ["NativeStream", "load_native", "native_status"]
