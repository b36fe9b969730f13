"""Reports say which backend runs a stream, and why not native code: what they say is what runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.accel import native_library
from otter_cli.accel.native_library import load_native
from otter_cli.accel.native_stream import NativeBackend
from otter_cli.accel.packed import PackedBackend
from otter_cli.accel.stream_path import model_stream_path, stream_path
from otter_cli.cli.main import main
from otter_cli.core.errors import OtterError
from otter_cli.model.backend import TorchBackend
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import CASES, Case
from tests.support.grafts import plan_for, random_graft

SIZES = {"hidden": 20, "heads": 2, "ffn": 10}
PROMPT = torch.tensor([[5, 9, 33, 40]])
needs_compiler = pytest.mark.skipif(load_native() is None, reason="no compiler here")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend that ran, for each time that streams did."""
    ran: list[str] = []
    for backend, name in (
        (NativeBackend, "native"), (PackedBackend, "packed"), (TorchBackend, "torch"),
    ):  # fmt: skip
        run = backend.run

        def noted(self: Any, *arguments: Any, run: Any = run, name: str = name) -> Any:
            result = run(self, *arguments)
            exact = {"packed": PackedBackend, "torch": TorchBackend}.get(name, type(self))
            if result is not None and type(self) is exact:
                ran.append(name)
            return result

        monkeypatch.setattr(backend, "run", noted)
    return ran


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("norm", ["own", "base"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_of_every_family_it_names_the_backend_that_runs(
    tiny_checkpoint: Any, tmp_path: Path, backends: list[str], case: Case, norm: str, capsys: Any
) -> None:
    sizes = SIZES if case.full else {**SIZES, "heads": 0}
    folder = random_graft(case.write(tiny_checkpoint), tmp_path / "g", norm=norm, **sizes)
    options = {"attn_implementation": "eager"} if case.eager_only else {}
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
    said = model_stream_path(model)
    if not case.eager_only:
        assert main(["inspect", str(folder), "--json"]) == 0
        inspected = json.loads(capsys.readouterr().out)["insertion"][0]["stream"]
        assert inspected == said.replace("bfloat16", "float32")
    model(PROMPT)
    words = {"native": "native code in bfloat16", "packed": "packed weights in bfloat16 (no native"}
    assert set(backends) == {"native"} or set(backends) == {"packed"}
    assert words[backends[0]] in said


@pytest.mark.parametrize("choice", ["torch", "packed", "native"])
@torch.no_grad()
def test_the_environment_chooses_a_backend(
    tiny_llama: Path, tmp_path: Path, backends: list[str], monkeypatch: Any, choice: str
) -> None:
    if choice == "native" and load_native() is None:
        pytest.skip("no compiler here")
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    logits = OtterForCausalLM.from_pretrained(folder)(PROMPT).logits
    backends.clear()
    monkeypatch.setenv("OTTER_BACKEND", choice)
    model = OtterForCausalLM.from_pretrained(folder)
    out = model(PROMPT)
    assert set(backends) == {choice}
    assert torch.equal(out.logits, logits)
    path = stream_path(plan_for(tiny_llama, **SIZES).config, model.shape, dtype="float32")
    assert path is not None and path.backend == choice
    assert path.why_not_native == ("" if choice == "native" else f"OTTER_BACKEND={choice}")


@needs_compiler
@torch.no_grad()
def test_required_native_code_runs_more_tokens_than_it_would_be_chosen_for(
    tiny_checkpoint: Any, tmp_path: Path, backends: list[str], monkeypatch: Any
) -> None:
    base = tiny_checkpoint("llama", max_position_embeddings=512)
    folder = random_graft(base, tmp_path / "g", **SIZES)
    tokens = torch.randint(3, 60, (1, 400), generator=torch.Generator().manual_seed(0))
    by_torch = OtterForCausalLM.from_pretrained(folder)(tokens).signals["reward"]
    assert set(backends) == {"packed"}
    backends.clear()
    monkeypatch.setenv("OTTER_BACKEND", "native")
    rewards = OtterForCausalLM.from_pretrained(folder)(tokens).signals["reward"]
    assert set(backends) == {"native"}
    torch.testing.assert_close(rewards, by_torch, rtol=1e-4, atol=2e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("double", "the inserted tensors are float64"),
        ("gradients", "it computes no gradients"),
        ("hook", "a module of the insertion has a hook"),
        ("eager", "the base's attention is not sdpa"),
        ("mixed", "the inserted tensors differ in dtype"),
    ],
)
def test_required_native_code_that_cannot_run_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: Any, how: str, reason: str
) -> None:
    monkeypatch.setenv("OTTER_BACKEND", "native")
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    options: dict[str, Any] = {"dtype": torch.float64} if how == "double" else {}
    if how == "eager":
        options["attn_implementation"] = "eager"
    model = OtterForCausalLM.from_pretrained(folder, **options)
    layer = model.insertions["main"].layers["1"]
    if how == "hook":
        layer.register_forward_hook(lambda *_: None)
    if how == "mixed":
        layer.ffn.norm.bfloat16()
    with torch.set_grad_enabled(how == "gradients"), pytest.raises(OtterError) as error:
        model(PROMPT)
    assert reason in error.value.what and "OTTER_BACKEND" in (error.value.hint or "")


def test_an_insertion_that_native_code_cannot_run_is_refused_when_it_loads(
    tiny_llama: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OTTER_BACKEND", "native")
    folder = random_graft(tiny_llama, tmp_path / "g", norm="base", **SIZES)
    with pytest.raises(OtterError, match="its norm is base, not own"):
        OtterForCausalLM.from_pretrained(folder)


def test_required_native_code_without_a_compiler_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OTTER_BACKEND", "native")
    monkeypatch.setattr(native_library, "_load_once", lambda: (None, "no C++ compiler 'c++'"))
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    with pytest.raises(OtterError, match=r"no C\+\+ compiler"):
        OtterForCausalLM.from_pretrained(folder)


def test_a_backend_that_is_none_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    monkeypatch.setenv("OTTER_BACKEND", "fast")
    with pytest.raises(OtterError, match="no such backend") as error:
        OtterForCausalLM.from_pretrained(folder)
    assert "torch, packed or native" in (error.value.hint or "")


def test_doctor_inspect_and_verify_say_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", **SIZES)
    monkeypatch.setenv("OTTER_BACKEND", "packed")
    because = "OTTER_BACKEND=packed"

    def said(*arguments: str) -> str:
        assert main([*arguments, "--json"]) == 0
        return capsys.readouterr().out

    assert because in json.loads(said("doctor"))["hardware"]["stream"]
    assert because in json.loads(said("inspect", str(folder)))["insertion"][0]["stream"]
    proof = json.loads(said("verify", str(folder), "--grid", "quick"))
    assert all(because in text for text in proof["streams"].values()) and proof["streams"]
    main(["inspect", str(folder)])
    assert because in " ".join(capsys.readouterr().out.split())


def test_a_signal_of_the_base_alone_has_no_stream(tiny_llama: Path, tmp_path: Path) -> None:
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=0)
    model = OtterForCausalLM.from_pretrained(folder)
    assert model_stream_path(model) == "no stream: signals of the base's own state"
