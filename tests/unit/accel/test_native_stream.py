"""What native code makes of the streams is what torch's operations make of them in double
precision; where it can't, they do."""

import copy
import ctypes
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

from otter_cli.accel import native_stream
from otter_cli.accel.native_abi import (
    POINTERS_OF_HEADS,
    WEIGHTS_PER_LAYER,
    PagedCache,
    StreamCall,
)
from otter_cli.accel.native_call import DTYPE_NUMBERS, TensorAddresses, array_address
from otter_cli.accel.native_library import load_native
from otter_cli.accel.native_stream import NativeBackend
from otter_cli.model import capture
from otter_cli.model.forward_context import inside_insertion
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.trace import Trace, Tracer
from tests.support.decoded_states import PROMPTS, decoded_states
from tests.support.families import FULL, Case
from tests.support.grafts import random_graft

SINGLE = {"mixtral", "qwen3_moe"}  # torch's grouped product knows no double precision
SIZES = {"hidden": 20, "heads": 2, "ffn": 10}

pytestmark = pytest.mark.skipif(load_native() is None, reason="no compiler here")
Watched = list[bool]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Whether native code did it, for every time that it was asked to."""
    seen: Watched = []
    call = NativeBackend.run

    def watched(self: NativeBackend, *given: Any) -> Any:
        done = call(self, *given)
        seen.append(done is not None)
        return done

    monkeypatch.setattr(NativeBackend, "run", watched)
    return seen


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    with monkeypatch.context() as patched:
        yield lambda: patched.setattr(native_stream, "load_native", lambda: None)


def _loaded(folder: Path, **options: Any) -> Any:
    return OtterForCausalLM.from_pretrained(folder, **options)


def _as_in_double(folder: Path, seen: Watched, **options: Any) -> None:
    _, rewards = decoded_states(_loaded(folder, **options))
    assert seen and all(seen)
    seen.clear()
    _, exact = decoded_states(_loaded(folder, dtype=torch.float64, **options))
    assert not any(seen)
    assert rewards.abs().max() > 0.01 and rewards.std() > 0.001
    torch.testing.assert_close(rewards.double(), exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kv", ["own", "base"])
@pytest.mark.parametrize("case", FULL, ids=str)
def test_every_family_by_it_or_by_torch(
    tiny_checkpoint: Any, tmp_path: Path, native: Watched, without: Any, case: Case, kv: str
) -> None:
    folder = random_graft(case.write(tiny_checkpoint), tmp_path / "g", kv=kv, **SIZES)
    if case.native and case.family not in SINGLE:
        _as_in_double(folder, native)
        return
    model = _loaded(folder, attn_implementation="eager" if case.eager_only else "sdpa")
    _, rewards = decoded_states(model)
    assert set(native) == {True} if case.native else not any(native)
    without()
    torch.testing.assert_close(rewards, decoded_states(model)[1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 5, "heads": 0, "ffn": 7},
        {"hidden": 31, "heads": 1, "ffn": 0},
        {"hidden": 16, "heads": 4, "kv_heads": 2, "ffn": 3, "embedding": "zeros"},
        {"hidden": 17, "heads": 2, "kv_heads": 1, "ffn": 35, "layers": (1, 2)},
        {"hidden": 1, "heads": 1, "ffn": 1, "layers": (0,)},
    ],
    ids=str,
)
def test_every_form(
    tiny_checkpoint: Any, tmp_path: Path, native: Watched, sizes: dict[str, Any]
) -> None:
    base = tiny_checkpoint("llama", attention_bias=True, mlp_bias=True)
    _as_in_double(random_graft(base, tmp_path / "g", **sizes), native)


@torch.no_grad()
def test_the_base_is_as_without_it_and_what_it_reads_stays(
    tiny_llama: Path, tmp_path: Path, native: Watched, without: Any, monkeypatch: Any
) -> None:
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES))
    call = NativeBackend.run

    def untouched(self: NativeBackend, z: Tensor, layers: Any, context: Any) -> Any:
        branches = [branch for layer in layers for branch in (layer.attention, layer.ffn)]
        read = [getattr(branch, name) for branch in branches for name in _READ]
        calls = [layer.attention.call for layer in layers]
        read += [getattr(one, name) for one in calls for name in ("key", "value")]
        before = [one.clone() for one in read]
        done = call(self, z, layers, context)
        assert all(map(torch.equal, before, read))
        return done

    monkeypatch.setattr(NativeBackend, "run", untouched)
    base, _ = decoded_states(model)
    assert native and all(native)
    without()
    assert torch.equal(decoded_states(model)[0], base)


_READ = ("normed", "base_out")


def test_a_forward_without_a_cache_or_a_mask(
    tiny_llama: Path, tmp_path: Path, native: Watched
) -> None:
    folder, tokens = random_graft(tiny_llama, tmp_path / "g", **SIZES), torch.tensor(PROMPTS[:1])
    found = []
    for dtype in (torch.float32, torch.float64):
        model = _loaded(folder, dtype=dtype)
        with torch.no_grad():
            found.append(model(tokens, use_cache=False).signals["reward"].double())
    assert native == [True, False]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_two_insertions_each_with_keys_of_its_own(
    tiny_llama: Path, tmp_path: Path, native: Watched
) -> None:
    one = random_graft(tiny_llama, tmp_path / "a", signals=("toxicity",), name="one", **SIZES)
    two = random_graft(
        one, tmp_path / "b", signals=("reward",), name="two", hidden=9, heads=1, ffn=4
    )
    _as_in_double(two, native)


@torch.no_grad()
def test_threads_change_no_bit(tiny_llama: Path, tmp_path: Path, native: Watched) -> None:
    model, threads = (
        _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES)),
        torch.get_num_threads(),
    )
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(decoded_states(model))
    finally:
        torch.set_num_threads(threads)
    assert all(native)
    (states, rewards), *others = found
    for other_states, other_rewards in others:
        # On some processors the base itself rounds otherwise with other thread counts.
        if torch.equal(states, other_states):
            assert torch.equal(rewards, other_rewards)
        else:
            torch.testing.assert_close(rewards, other_rewards, rtol=1e-5, atol=2e-6)


def _written(model: Any) -> None:
    for parameter in model.insertions.parameters():
        parameter.add_(0.05)


def _there_and_back(model: Any) -> None:
    model.insertions.double()
    _written(model)
    model.insertions.float()


def _others(model: Any) -> None:
    state = {name: 0.5 * tensor for name, tensor in model.insertions.state_dict().items()}
    model.insertions.load_state_dict(state, assign=True)


def _one_other(model: Any) -> None:
    part = model.insertions["main"].layers["1"].ffn.down.z
    part.weight = torch.nn.Parameter(9 * part.weight)


def _one_other_unasked(model: Any) -> None:
    norm = model.insertions["main"].norm
    norm._parameters |= {"weight": torch.nn.Parameter(2 * norm.weight)}


@pytest.mark.parametrize(
    "change", [_written, _there_and_back, _others, _one_other, _one_other_unasked]
)
@torch.no_grad()
def test_it_reads_the_parameters_as_they_are(
    tiny_llama: Path, tmp_path: Path, native: Watched, without: Any, change: Any
) -> None:
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES))
    before = decoded_states(model)[1]
    change(model)
    after = decoded_states(model)[1]
    assert all(native) and (after - before).abs().max() > 1e-3
    without()
    torch.testing.assert_close(after, decoded_states(model)[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_copy_is_asked_for_its_own_parameters(
    tiny_llama: Path, tmp_path: Path, native: Watched
) -> None:
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES))
    before = decoded_states(model)[1]
    other = copy.deepcopy(model)
    # Weights at other addresses may be summed in another order.
    torch.testing.assert_close(decoded_states(other)[1], before, rtol=1e-5, atol=2e-6)
    _one_other(other)
    assert (decoded_states(other)[1] - before).abs().max() > 1e-3
    assert all(native) and torch.equal(decoded_states(model)[1], before)


@torch.no_grad()
@pytest.mark.parametrize("kv", ["own", "base"])
@pytest.mark.parametrize("fits", [True, False], ids=["fits", "too much to hold"])
def test_many_rows_wait_while_what_they_read_is_small(
    tiny_checkpoint: Any, tmp_path: Path, native: Watched, monkeypatch: Any, kv: str, fits: bool
) -> None:
    monkeypatch.setattr(capture, "_MOST_HELD_BYTES", 2**26 if fits else 0)
    base = tiny_checkpoint("llama", max_position_embeddings=512)
    folder = random_graft(base, tmp_path / "g", kv=kv, layers=(0, 2), **SIZES)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 60, (2, 150), generator=draw)
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = _loaded(folder, dtype=dtype)
        cache, rewards = model.new_cache(), []
        for start, end in ((0, 40), (40, 80), (80, 150)):
            out = model(tokens[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
            rewards.append(out.signals["reward"].double())
        found[dtype] = torch.cat(rewards, 1)[mask.bool()]
    # Three forwards, or two layers in each of three; in double precision it declines.
    assert native == [True] * (3 if fits else 6) + [False] * (3 if fits else 6)
    torch.testing.assert_close(found[torch.float32], found[torch.float64], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_copy_has_weights_and_taps_of_its_own(
    tiny_llama: Path, tmp_path: Path, native: Watched
) -> None:
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES))
    before = decoded_states(model)
    other = copy.deepcopy(model)
    _written(other)
    for parameter in other.base.parameters():
        parameter.add_(0.01)
    base, rewards = decoded_states(other)
    assert all(native)
    assert (base - before[0]).abs().max() > 1e-3 and (rewards - before[1]).abs().max() > 1e-3
    assert all(map(torch.equal, decoded_states(model), before))


class _Watcher(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_who_follows_the_operations_sees_them(
    tiny_llama: Path, tmp_path: Path, native: Watched
) -> None:
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES))
    unwatched = model(torch.tensor(PROMPTS[:1])).signals["reward"]
    with _Watcher() as watcher:
        watched = model(torch.tensor(PROMPTS[:1])).signals["reward"]
    assert watcher.seen.count("otter.stream_layers.default") == 1
    assert torch.equal(watched, unwatched)
    layer = model.insertions["main"].layers["1"]
    hooked: list[Any] = [layer, layer.ffn.norm, model.insertions["main"].norm]
    for hook in [module.register_forward_hook for module in hooked] + [
        register_module_forward_hook
    ]:
        handle = hook(lambda *_: None)
        model(torch.tensor(PROMPTS[:1]))
        handle.remove()
    model(torch.tensor(PROMPTS[:1]))
    assert native == [True, True, False, False, False, False, True]


def _traced(model: OtterForCausalLM) -> Trace:
    """Of one step of one token after a prompt."""
    inserted = [parameter for _, parameter in model.inserted_parameters()]
    cache = model.new_cache()
    with torch.no_grad(), model.streaming():
        model.base(torch.tensor(PROMPTS[:1]), past_key_values=cache)
        with Tracer(model.base, inserted, inside_insertion) as tracer:
            model.base(torch.tensor([[4]]), past_key_values=cache)
    return tracer.trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_trace_sees_native_code_and_finds_no_leak(
    tiny_llama: Path, tmp_path: Path, native: Watched, dtype: torch.dtype
) -> None:
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **SIZES), dtype=dtype)
    trace = _traced(model)
    assert all(native) and trace.leak is None
    assert 0 < trace.inserted < 20  # the embedding, and one operator in place of all layers


def test_a_trace_finds_native_code_that_writes_to_the_base_s_keys(
    tiny_llama: Path, tmp_path: Path, native: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values go to the base's cache layers instead of the insertion's own."""
    sizes = {**SIZES, "kv_heads": 2}
    model = _loaded(random_graft(tiny_llama, tmp_path / "g", **sizes))

    def of_base(self: NativeBackend, z: Tensor, layers: Any) -> tuple[list[Tensor], int]:
        calls = [layer.attention.call for layer in layers]
        read = [one[:, :2] for call in calls for one in (call.key, call.value)]
        return read, read[0].shape[2]

    monkeypatch.setattr(NativeBackend, "_own_keys_and_values", of_base)
    leak = _traced(model).leak
    assert all(native) and leak is not None
    assert leak.operation == "otter.stream_layers.default"
    assert leak.what == "writes to a tensor of the base's"


@torch.no_grad()
@pytest.mark.parametrize("how", ["static", "eager", "double", "window"])
def test_what_it_does_not_know_is_torchs(
    tiny_checkpoint: Any, tmp_path: Path, native: Watched, how: str
) -> None:
    base = tiny_checkpoint(*(("mistral",) if how == "window" else ("llama",)))
    folder = random_graft(base, tmp_path / "g", **SIZES)
    options: dict[str, Any] = {"attn_implementation": "eager"} if how == "eager" else {}
    if how == "double":
        options["dtype"] = torch.float64
    model = _loaded(folder, **options)
    caches = {"past_key_values": StaticCache(config=model.config, max_cache_len=16)}
    model(torch.tensor(PROMPTS[:1]), **(caches if how == "static" else {}))
    assert native == [False]


@torch.no_grad()
def test_a_base_of_half_the_width_under_an_insertion_in_single_precision(
    tiny_llama: Path, tmp_path: Path, native: Watched, without: Any
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    model = _loaded(folder, dtype=torch.bfloat16, insertion_dtype=torch.float32)
    base, rewards = decoded_states(model)
    assert native and all(native)
    without()
    other, by_torch = decoded_states(model)
    assert torch.equal(base, other)
    torch.testing.assert_close(rewards, by_torch, rtol=1e-4, atol=2e-5)
    # Keys of half the width are not numbers that it reads.
    local = random_graft(tiny_llama, tmp_path / "l", kv="base", **SIZES)
    native.clear()
    decoded_states(_loaded(local, dtype=torch.bfloat16, insertion_dtype=torch.float32))
    assert native and not any(native)


TELL = (
    "from otter_cli.accel.native_library import load_native, native_refusal; "
    "print(load_native() is not None, native_refusal())"
)


def _told(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    return subprocess.run(
        [sys.executable, "-c", TELL], env=own, capture_output=True, text=True, check=True
    )


def test_it_is_compiled_once_and_whole(tmp_path: Path) -> None:
    assert _told(tmp_path).stdout.startswith("True")
    (made,) = (tmp_path / "otter").iterdir()
    written = made.stat().st_mtime_ns
    again = _told(tmp_path)
    assert again.stdout.startswith("True") and "compiling" not in again.stderr
    assert [(one, one.stat().st_mtime_ns) for one in (tmp_path / "otter").iterdir()] == [
        (made, written)
    ]


@pytest.mark.parametrize(
    "fault", ["switched off", "no compiler", "bad compiler", "silent compiler", "no room"]
)
def test_where_it_is_not_made_it_is_said_why(tmp_path: Path, fault: str) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho cannot compile >&2\nexit 1\n")
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho >&2\nexit 1\n")
    for one in (compiler, silent):
        one.chmod(0o755)
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment, reason = {
        "switched off": ({"OTTER_NATIVE": "0"}, "OTTER_NATIVE=0"),
        "no compiler": ({"CXX": "/nowhere/c++"}, "no C++ compiler"),
        "bad compiler": ({"CXX": str(compiler)}, "cannot compile"),
        "silent compiler": ({"CXX": str(silent)}, "exit status 1"),
        "no room": ({"XDG_CACHE_HOME": str(blocked)}, "Not a directory"),
    }[fault]
    told = _told(tmp_path, **environment).stdout
    assert told.startswith("False") and reason in told


def test_a_user_without_a_home_has_torchs_operations(tmp_path: Path) -> None:
    homeless = (
        "import pathlib\ndef none(): raise RuntimeError('no home')\npathlib.Path.home = none\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", homeless + TELL],
        env={**os.environ, "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.startswith("False") and "no home" in told


@pytest.mark.parametrize("head_dim", [32, 80])
@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
def test_heads_read_a_paged_cache(half: bool, head_dim: int) -> None:
    """Rows of sequences of unlike lengths, whose blocks lie anywhere, against attention in double
    precision: all of z is what the heads found. Slots that are not written yet are no numbers."""
    native = load_native()
    assert native is not None
    random = torch.Generator().manual_seed(0)
    blocks, kv_heads, size, wide, hidden, heads = 14, 3, 64, 56, 8, 4
    lengths, read = [1, 63, 64, 65, 150, 33, 0] * 2, slice(1, 3)
    sequence = torch.tensor([0, 1, 2, 3, 1, 0, 2] * 2)
    table = torch.randperm(blocks, generator=random)[:12].view(4, 3).int()
    keys, values = torch.randn(2, blocks, kv_heads, size, head_dim, generator=random)
    written = torch.zeros(4, 3 * size, dtype=torch.bool)
    for row, length in zip(sequence, lengths, strict=True):
        written[row, :length] = True
    for part in keys, values:
        part[table.long().flatten()] = part[table.long().flatten()].masked_fill(
            ~written.view(12, 1, size, 1), torch.nan
        )
    dtype = torch.bfloat16 if half else torch.float32
    if half:
        keys, values = keys.bfloat16(), values.bfloat16()
        packed = keys.unflatten(-1, (-1, 2)).unflatten(2, (-1, 16)).transpose(-2, -3).flatten(2)
        behind = values.mT.unflatten(-1, (-1, 2)).unflatten(2, (-1, 16)).transpose(-2, -3)
        cache = torch.cat([packed, behind.flatten(2)], -1)
    else:
        cache = torch.cat([keys.mT.flatten(2), values.flatten(2)], -1)
    x = torch.randn(len(lengths), wide, generator=random).to(dtype)
    ask = torch.randn(heads * head_dim, wide, generator=random).mul(0.3).to(dtype)
    out = torch.randn(hidden, heads * head_dim, generator=random)
    memory, seen, z = TensorAddresses(), torch.tensor(lengths), torch.zeros(len(lengths), hidden)
    parts = dict.fromkeys(range(WEIGHTS_PER_LAYER), 0)
    ones, zeros = torch.ones(hidden), torch.zeros(heads * head_dim, hidden)
    parts |= {0: memory.kept(ones), 2: memory.kept(ask, dtype), 3: memory.kept(zeros)}
    parts |= {7: memory.kept(torch.zeros(hidden, wide), dtype), 8: memory.kept(out)}
    parts[15] = memory.kept(torch.zeros(hidden, wide), dtype)
    pages = PagedCache(
        size=size,
        half=half,
        of_block=cache.stride(0),
        of_head=cache.stride(1),
        of_sequence=table.stride(0),
        table=table.data_ptr(),
        sequence=sequence.data_ptr(),
        seen=seen.data_ptr(),
    )
    widths = dict.fromkeys(("in_heads", "in_out", "in_units", "in_down"), wide)
    form = StreamCall(
        batch=1, tokens=len(lengths), layers=1, hidden=hidden, heads=heads, kv_heads=2,
        head_dim=head_dim, slots=max(lengths), eps=1e-6, scale=0.2, base_dtype=DTYPE_NUMBERS[dtype],
        pages=ctypes.addressof(pages), **widths,
    )  # fmt: skip
    first = cache.data_ptr() + read.start * cache.stride(1) * cache.itemsize
    taps = array("q", [x.data_ptr()] * 4 + [first] + [0] * 10)
    weights = array("q", parts.values())
    native.otter_stream(
        ctypes.byref(form),
        array_address(weights),
        array_address(taps),
        ctypes.c_void_p(z.data_ptr()),
        None,
    )
    for row, length in enumerate(lengths):
        query = (ask.double() @ x[row].double()).view(2, -1, head_dim)
        mine = table[sequence[row]].long()
        key, value = (
            part[mine][:, read].transpose(0, 1).flatten(1, 2)[:, :length].double()
            for part in (keys, values)
        )
        found = (query @ key.mT * 0.2).softmax(-1) @ value
        assert torch.allclose(z[row].double(), out.double() @ found.flatten(), atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 16, 70])
@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
def test_what_is_read_of_the_base_in_either_precision(half: bool, rows: int) -> None:
    """A layer without heads, against double precision over the same numbers."""
    native = load_native()
    assert native is not None
    random = torch.Generator().manual_seed(rows)
    dtype, wide, narrow, hidden, units = (torch.bfloat16 if half else torch.float32), 88, 41, 8, 6

    def drawn(*shape: int, like: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(like)

    attended, x, m = (drawn(rows, width, like=dtype) for width in (narrow, wide, wide))
    out, down = (drawn(hidden, width, like=dtype) for width in (narrow, wide))
    units_h, units_z = drawn(2 * units, wide, like=dtype), drawn(2 * units, hidden)
    down_z, norm, z = drawn(hidden, units), drawn(hidden), drawn(rows, hidden)
    parts = dict.fromkeys(range(WEIGHTS_PER_LAYER), 0)
    places = {7: out, 10: norm, 12: units_h, 13: units_z, 15: down, 16: down_z}
    parts |= {place: tensor.data_ptr() for place, tensor in places.items()}
    form = StreamCall(
        batch=1, tokens=rows, layers=1, hidden=hidden, in_out=narrow, in_units=wide, in_down=wide,
        units=units, base_dtype=DTYPE_NUMBERS[dtype], eps=1e-6,
    )  # fmt: skip
    taps = array(
        "q", [0, attended.data_ptr(), x.data_ptr(), m.data_ptr()] + [0] * POINTERS_OF_HEADS
    )
    weights, found = array("q", parts.values()), z.clone()
    native.otter_stream(
        ctypes.byref(form),
        array_address(weights),
        array_address(taps),
        ctypes.c_void_p(found.data_ptr()),
        None,
    )
    wanted = z.double() + attended.double() @ out.double().T
    u = wanted * (wanted.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.double()
    gate, up = (x.double() @ units_h.double().T + u @ units_z.double().T).chunk(2, -1)
    wanted += m.double() @ down.double().T + (gate.sigmoid() * gate * up) @ down_z.double().T
    assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-3)
