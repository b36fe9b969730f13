"""Fast execution of the inserted stream, behind `model.backend.StreamBackend`.

PackedBackend runs torch's operations on packed weights. NativeBackend runs compiled code for a few
tokens on a CPU, and declines what it does not support."""

from otter_cli.accel.native_stream import NativeBackend
from otter_cli.accel.packed import PackedBackend
from otter_cli.families.shape import BaseShape
from otter_cli.model.backend import StreamBackend
from otter_cli.model.stream import Insertion


def stream_backends(
    insertion: Insertion, shape: BaseShape, depth: int, number: int
) -> list[StreamBackend]:
    """The backends of one insertion, the `number`-th from 1 on a base of `depth` layers, in the
    order in which they are asked."""
    packed = PackedBackend(insertion, shape, depth, number)
    return [NativeBackend(packed), packed]
