"""Where two models differ first: the operation, its module and its layer."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
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
    """The first operation that differs, and what came of it in the end.

    `ulp` and `largest` are of that operation's result, None where the operations themselves
    differ. `position`: [row, token] of the first logit that moved.
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
        position = self.logits.first
        return {
            **vars(self),
            "case": self.case.record(),
            "logits": self.logits.record(),
            "position": position and list(position),
        }


@dataclass(frozen=True)
class _Step:
    operation: str
    module: str
    checksums: tuple[int, ...]


class _Recorder(TorchDispatchMode):
    """The base's own operations with checksums of what they gave; `keep`: results of that one."""

    def __init__(self, subject: TestedModel, keep: int | None = None) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.kept: list[Tensor] = []
        self._subject, self._keep, self._modules = subject, keep, ModulePath()

    def run(self, case: Case) -> None:
        with self._modules.following(self._subject.model, lambda *_: None), self:
            run_case(case, self._subject)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        output = function(*arguments, **(named or {}))
        if inside_insertion():
            return output
        made = list(tensors_in(output))
        if self._keep == len(self.steps):
            self.kept = [tensor.detach().clone() for tensor in made]
        # A view differs only where its source does: of a changed weight, name the product.
        plain = self._keep is None and not function.is_view
        sums = tuple(map(_checksum, made)) if plain else ()
        self.steps.append(_Step(str(function), self._modules.current, sums))
        return output


def bisect(pair: ModelPair, case: Case) -> FirstDifference | None:
    """None where the case comes out equal when it is run again."""
    base, other = _Recorder(pair.base), _Recorder(pair.other)
    base.run(case)
    other.run(case)
    index = next(
        (i for i, (a, b) in enumerate(zip_longest(base.steps, other.steps)) if a != b), None
    )
    if index is None:
        return None
    moved = _logits(pair, case)
    if index >= min(len(base.steps), len(other.steps)):
        return _other_operation(case, (other.steps + base.steps[len(other.steps) :])[index], moved)
    a, b = base.steps[index], other.steps[index]
    if (a.operation, a.module) != (b.operation, b.module):
        return _other_operation(
            case, b, moved, instead=f", where the base runs {a.operation} in {a.module}"
        )
    return _other_result(pair, case, index, b, moved)


def _other_operation(
    case: Case, step: _Step, moved: LogitsDifference, instead: str = ""
) -> FirstDifference:
    what = f"an operation that the base does not run there{instead}"
    return FirstDifference(
        case, step.module, step.operation, what, layer_of(step.module), None, None, moved
    )


def _other_result(
    pair: ModelPair, case: Case, index: int, step: _Step, moved: LogitsDifference
) -> FirstDifference:
    base, other = _Recorder(pair.base, keep=index), _Recorder(pair.other, keep=index)
    base.run(case)
    other.run(case)
    what, ulp, largest = "gives another result", None, None
    for mine, theirs in zip(base.kept, other.kept, strict=True):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            what = f"gives {_describe_tensor(theirs)}, the base {_describe_tensor(mine)}"
            break
        finite = (mine.isfinite() & theirs.isfinite()) & (bit_pattern(mine) != bit_pattern(theirs))
        if mine.is_floating_point() and finite.any():
            ulp = int(ulp_distance(mine[finite], theirs[finite]).max())
            largest = float((mine[finite].double() - theirs[finite].double()).abs().max())
            break
    return FirstDifference(
        case, step.module, step.operation, what, layer_of(step.module), ulp, largest, moved
    )


def layer_of(module: str) -> int | None:
    """The index of the layer that a module is in, by its name."""
    found = _LAYER.search(module)
    return int(found.group(1)) if found else None


def _logits(pair: ModelPair, case: Case) -> LogitsDifference:
    return difference(run_case(case, pair.base).logits, run_case(case, pair.other).logits)


def _describe_tensor(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _checksum(tensor: Tensor) -> int:
    shape = f"{list(tensor.shape)}{tensor.dtype}".encode()
    return zlib.crc32(bit_pattern(tensor).cpu().numpy().tobytes(), zlib.crc32(shape))
