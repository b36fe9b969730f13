"""Where two models differ first: the operation, its module and its layer."""

from __future__ import annotations

import re
import zlib
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from otter_cli.model.forward_context import inside_insertion
from otter_cli.verification.bits import LogitsDifference, bit_pattern, difference, ulp_distance
from otter_cli.verification.case_runner import ModelPair, TestedModel, run_case
from otter_cli.verification.grid import Case
from otter_cli.verification.trace import ModulePath, tensors_in

_LAYER = re.compile(r"\.(\d+)(\.|$)")


@dataclass(frozen=True)
class FirstDifference:
    """The first operation that differs, and how the logits differ in the end.

    `ulp` and `largest` are of that operation's result. They are None where the operations
    themselves differ.
    """

    case: Case
    module: str
    operation: str
    what: str
    layer: int | None
    ulp: int | None
    largest: float | None
    logits: LogitsDifference

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "position": self.logits.first}


@dataclass(frozen=True)
class _Step:
    """One operation of a base, with checksums of its results."""

    operation: str
    module: str
    checksums: tuple[int, ...]


class _Recorder(TorchDispatchMode):
    """Records the base's own operations while a case runs. `keep` is the index of one operation
    whose results are kept in `kept`."""

    def __init__(self, subject: TestedModel, case: Case, keep: int | None = None) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.kept: list[Tensor] = []
        self._keep, self._modules = keep, ModulePath()
        with self._modules.following(subject.model), self:
            run_case(case, subject)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if inside_insertion():
            return output
        results = list(tensors_in(output))
        if self._keep == len(self.steps):
            self.kept = [tensor.detach().clone() for tensor in results]
        # A view differs only where its source does. Without views, a changed weight shows at the
        # product that uses it.
        summed = self._keep is None and not function.is_view
        checksums = tuple(map(_checksum, results)) if summed else ()
        self.steps.append(_Step(str(function), self._modules.current, checksums))
        return output


def bisect(pair: ModelPair, case: Case) -> FirstDifference | None:
    """Runs the case again on both models. Returns None where it is equal this time."""
    base, other = _Recorder(pair.base, case).steps, _Recorder(pair.candidate, case).steps
    index, a, b = next(
        ((i, a, b) for i, (a, b) in enumerate(zip_longest(base, other)) if a != b),
        (0, None, None),
    )
    step = b or a
    if step is None:
        return None
    ulp = largest = None
    if b is None:
        what = "an operation of the base that the candidate does not run"
    elif a is None:
        what = "an operation that the base does not run there"
    elif (a.operation, a.module) != (b.operation, b.module):
        what = (
            "an operation that the base does not run there, where the base runs "
            f"{a.operation} in {a.module}"
        )
    else:
        what, ulp, largest = _result_difference(pair, case, index)
    logits = difference(run_case(case, pair.base).logits, run_case(case, pair.candidate).logits)
    return FirstDifference(
        case, step.module, step.operation, what, layer_of(step.module), ulp, largest, logits
    )


def _result_difference(
    pair: ModelPair, case: Case, index: int
) -> tuple[str, int | None, float | None]:
    """How the results of operation `index` differ: in words, in ulp and absolutely."""
    base, other = (_Recorder(model, case, keep=index).kept for model in (pair.base, pair.candidate))
    for first, second in zip(base, other, strict=True):
        if first.shape != second.shape or first.dtype != second.dtype:
            what = f"gives {_describe_tensor(second)}, the base {_describe_tensor(first)}"
            return what, None, None
        unequal = bit_pattern(first) != bit_pattern(second)
        unequal &= first.isfinite() & second.isfinite()
        if first.is_floating_point() and unequal.any():
            a, b = first[unequal], second[unequal]
            largest = float((a.double() - b.double()).abs().max())
            return "gives another result", int(ulp_distance(a, b).max()), largest
    return "gives another result", None, None


def layer_of(module: str) -> int | None:
    """The index of the layer that a module is in, by its name."""
    match = _LAYER.search(module)
    return int(match.group(1)) if match else None


def _describe_tensor(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _checksum(tensor: Tensor) -> int:
    shape = f"{list(tensor.shape)}{tensor.dtype}".encode()
    return zlib.crc32(bit_pattern(tensor).cpu().numpy().tobytes(), zlib.crc32(shape))
