"""Native code in bfloat16 and half precision: as near to double precision as torch's operations in
the same dtype, with no more operations than in single precision, on any processor."""

import ctypes
import shutil
import subprocess
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from otter_cli.accel import native_call, native_library, native_stream
from otter_cli.accel.native_abi import POINTERS_OF_HEADS, WEIGHTS_PER_LAYER, StreamCall
from otter_cli.accel.native_call import DTYPE_NUMBERS, array_address
from otter_cli.accel.native_library import load_native
from otter_cli.accel.native_stream import NativeBackend
from otter_cli.model.backend import TorchBackend
from otter_cli.model.otter import OtterForCausalLM
from tests.support.decoded_states import PROMPTS, decoded_states
from tests.support.families import FULL, Case
from tests.support.grafts import random_graft

pytestmark = pytest.mark.skipif(load_native() is None, reason="no compiler here")
SIZES = {"hidden": 20, "heads": 2, "ffn": 10}
HALVES = [torch.bfloat16, torch.float16]
# One case for each form of the layer: with biases, with head norms, with scaled branches.
CASES = [case for case in FULL if case.family in ("llama", "qwen3", "granite", "smollm3")]


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library for any x86-64 processor, without instructions for bfloat16 and halves."""
    compiler, source = shutil.which("c++"), Path(native_library.__file__).with_name("stream.cpp")
    assert compiler is not None
    out = tmp_path_factory.mktemp("portable") / "stream.so"
    flags = [flag for flag in native_library._FLAGS if flag != "-march=native"]
    subprocess.run([compiler, *flags, str(source), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why native code did not run, for every call; "" where it did."""
    reasons: list[str] = []
    refusal = NativeBackend.refusal

    def noted(self: NativeBackend, *arguments: Any) -> str:
        reasons.append(refusal(self, *arguments))
        return reasons[-1]

    monkeypatch.setattr(NativeBackend, "refusal", noted)
    return reasons


def _by_reference(model: OtterForCausalLM) -> None:
    for number, (name, insertion) in enumerate(model.capture.insertions.items(), 1):
        reference = TorchBackend(insertion, model.shape, model.capture.depth, number)
        model.capture.backends[name] = [reference]


def _error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kv", ["own", "base"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_as_near_to_double_precision_as_torch_in_the_same_dtype(
    tiny_checkpoint: Any, tmp_path: Path, runs: list[str], case: Case, kv: str, dtype: Any
) -> None:
    folder = random_graft(case.write(tiny_checkpoint), tmp_path / "g", kv=kv, **SIZES)
    exact = decoded_states(OtterForCausalLM.from_pretrained(folder, dtype=torch.float64))[1]
    runs.clear()
    model = OtterForCausalLM.from_pretrained(folder, dtype=dtype)
    base, rewards = decoded_states(model)
    assert set(runs) == {""}
    _by_reference(model)
    other_base, by_torch = decoded_states(model)
    assert torch.equal(base, other_base)
    assert _error(rewards, exact) < 1.2 * _error(by_torch, exact) + torch.finfo(dtype).eps / 4
    assert _error(rewards, exact) < 16 * torch.finfo(dtype).eps


def _operations(step: Callable[[], Any]) -> Counter[str]:
    """Every operation of torch, also those inside native code's operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    return Counter(event.name for event in profiler.events() if "::" in event.name)


def _extra_operations(folder: Path, dtype: torch.dtype) -> Counter[str]:
    """Of a decoded token, beyond the base's."""
    model = OtterForCausalLM.from_pretrained(folder, dtype=dtype)

    def counted(run: Callable[..., Any]) -> Counter[str]:
        cache, token = model.new_cache(), torch.tensor([[4]])
        with torch.no_grad():
            run(torch.tensor(PROMPTS[:1]), past_key_values=cache)
            run(token, past_key_values=cache)  # later steps have nothing left to prepare
            return _operations(lambda: run(token, past_key_values=cache))

    return counted(model) - counted(model.base)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kv", ["own", "base"])
def test_a_decoded_token_has_no_more_operations_than_in_single_precision(
    tiny_checkpoint: Any, tmp_path: Path, kv: str, dtype: torch.dtype
) -> None:
    folder = random_graft(tiny_checkpoint("llama"), tmp_path / "g", kv=kv, **SIZES)
    single, half = (_extra_operations(folder, each) for each in (torch.float32, dtype))
    assert half["otter::stream_layers"] == single["otter::stream_layers"] == 1
    assert half.total() <= single.total()


def test_the_operations_of_a_decoded_token_do_not_grow_with_the_layers(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    counts = []
    for layers in (2, 6):
        base = tiny_checkpoint("llama", num_hidden_layers=layers)
        folder = random_graft(base, tmp_path / f"g{layers}", **SIZES)
        counts.append(_extra_operations(folder, torch.bfloat16))
    assert counts[0] == counts[1]


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_no_activation_weight_or_key_is_converted(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Each is read once, in its own dtype: half the bytes of single precision."""
    held: list[Tensor] = []

    class Noted(native_call.TensorAddresses):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__(dtype)
            self.held = held

    monkeypatch.setattr(native_stream, "TensorAddresses", Noted)
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    model = OtterForCausalLM.from_pretrained(folder, dtype=dtype)
    model(torch.tensor(PROMPTS[:1]))
    assert held == []


class _AttentionBackward(TorchDispatchMode):
    """The dtypes in which torch computes the gradients of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "scaled_dot_product" in str(function) and "backward" in str(function):
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def _gradients(folder: Path, dtype: torch.dtype) -> tuple[Tensor, set[torch.dtype]]:
    model = OtterForCausalLM.from_pretrained(folder, dtype=dtype)
    parameters = [parameter for _, parameter in model.inserted_parameters()]
    loss = model(torch.tensor(PROMPTS[:1]), logits=False).signals["reward"].square().sum()
    with _AttentionBackward() as watched:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(each is None or each.dtype == dtype for each in found)
    return torch.cat([each.flatten() for each in found if each is not None]), watched.dtypes


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kv", ["own", "base"])
def test_training_takes_the_gradients_of_attention_in_single_precision(
    tiny_llama: Path, tmp_path: Path, kv: str, dtype: torch.dtype
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", kv=kv, signals=("reward",), **SIZES)
    exact, _ = _gradients(folder, torch.float64)
    gradients, dtypes = _gradients(folder, dtype)
    assert dtypes == {torch.float32}
    assert _error(gradients, exact) < 8 * torch.finfo(dtype).eps


def _layer(
    library: Any, dtype: torch.dtype, z: Tensor, parts: dict[int, Tensor], **sizes: Any
) -> Tensor:
    """z after one layer of zeros without heads, but for its `parts` by their place."""
    rows, hidden = z.shape
    zeros = torch.zeros(max(rows, hidden), 64, dtype=dtype)
    places = {7: zeros, 15: zeros, **parts}
    weights = array("q", [0] * WEIGHTS_PER_LAYER)
    for place, tensor in places.items():
        assert tensor.dtype == dtype and tensor.is_contiguous()
        weights[place] = tensor.data_ptr()
    number = DTYPE_NUMBERS[dtype]
    call = StreamCall(
        batch=1, tokens=rows, layers=1, hidden=hidden, in_out=64, in_down=64, eps=1e-6,
        base_dtype=number, own_dtype=number, **sizes,
    )  # fmt: skip
    taps = array("q", [zeros.data_ptr()] * 4 + [0] * POINTERS_OF_HEADS)
    found = z.clone()
    library.otter_stream(
        ctypes.byref(call),
        array_address(weights),
        array_address(taps),
        ctypes.c_void_p(found.data_ptr()),
        None,
    )
    return found


def _all_numbers(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("build", ["native", "portable"])
def test_every_number_of_the_dtype_is_read_and_written(
    portable: ctypes.CDLL, build: str, dtype: torch.dtype
) -> None:
    library = portable if build == "portable" else load_native()
    numbers = _all_numbers(dtype).view(-1, 64)
    found = _layer(library, dtype, numbers, {})
    torch.testing.assert_close(found, numbers, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("build", ["native", "portable"])
def test_sums_are_rounded_as_torch_rounds(
    portable: ctypes.CDLL, build: str, dtype: torch.dtype
) -> None:
    """Each number plus a bias of any size, in single precision, halfway cases among them."""
    library = portable if build == "portable" else load_native()
    numbers = _all_numbers(dtype).view(-1, 64)
    random = torch.Generator().manual_seed(0)
    for _ in range(8):
        drawn = torch.randint(0, 2**16, (64,), generator=random)
        bias = _all_numbers(dtype)[drawn].clone()
        found = _layer(library, dtype, numbers, {9: bias})
        expected = (numbers.float() + bias.float()).to(dtype)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_processor_without_their_instructions_computes_the_same(
    portable: ctypes.CDLL, tiny_llama: Path, tmp_path: Path, monkeypatch: Any, dtype: torch.dtype
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    model = OtterForCausalLM.from_pretrained(folder, dtype=dtype)
    rewards = decoded_states(model)[1]
    monkeypatch.setattr(native_call, "load_native", lambda: portable)
    eps = torch.finfo(dtype).eps
    others = decoded_states(model)[1]
    torch.testing.assert_close(others, rewards, rtol=8 * eps, atol=4 * eps)


@torch.no_grad()
def test_a_mask_in_the_dtype_of_the_base_is_read(
    tiny_llama: Path, tmp_path: Path, runs: list[str]
) -> None:
    """An additive mask of a caller, whose lowest number is infinite in half precision."""
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    exact: Tensor | None = None
    tokens = torch.tensor(PROMPTS[:1])
    count = tokens.shape[1]
    hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
    hidden[2:, 1] = True
    for dtype in (torch.float64, *HALVES):
        model = OtterForCausalLM.from_pretrained(folder, dtype=dtype)
        mask = torch.zeros(1, 1, count, count, dtype=dtype)
        mask.masked_fill_(hidden, torch.finfo(dtype).min)
        reward = model(tokens, attention_mask=mask).signals["reward"]
        exact = reward if exact is None else exact
        assert _error(reward, exact) < 16 * torch.finfo(dtype).eps
    assert runs[1:] == ["", ""]
