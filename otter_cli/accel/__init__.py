"""Fast execution of the inserted stream, behind `model.backend.StreamBackend`.

PackedBackend runs torch's operations on packed weights. NativeBackend runs compiled code for a few
tokens on a CPU, and declines what it does not support. stream_path.py says which of them runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otter_cli.accel.backend_choice import cannot_run_native, chosen_backend

if TYPE_CHECKING:
    from otter_cli.families.shape import BaseShape
    from otter_cli.model.backend import StreamBackend
    from otter_cli.model.stream import Insertion


def stream_backends(
    insertion: Insertion, shape: BaseShape, depth: int, number: int
) -> list[StreamBackend]:
    """The backends of one insertion, the `number`-th from 1 on a base of `depth` layers, in the
    order in which they are asked. OTTER_BACKEND chooses one of them. Raises OtterError where that
    is native code, which cannot run the insertion."""
    from otter_cli.accel.native_library import native_refusal
    from otter_cli.accel.native_stream import NativeBackend
    from otter_cli.accel.packed import PackedBackend
    from otter_cli.accel.stream_path import insertion_refusal
    from otter_cli.model.backend import TorchBackend

    chosen = chosen_backend()
    if chosen == "torch":
        return [TorchBackend(insertion, shape, depth, number)]
    packed = PackedBackend(insertion, shape, depth, number)
    if chosen == "packed":
        return [packed]
    if chosen == "native":
        if reason := insertion_refusal(insertion.config, shape) or native_refusal():
            raise cannot_run_native(reason)
        return [NativeBackend(packed, required=True)]
    return [NativeBackend(packed), packed]
