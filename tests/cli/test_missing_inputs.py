"""What is not there is said to be not there, at once: paths, hub ids, recipes, devices."""

import time
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperArgument
from typer.main import get_command

from otter_cli.checkpoint.base_source import find_base
from otter_cli.core.errors import OtterError
from tests.cli.test_help import LEAVES
from tests.conftest import Otter, TinyCheckpoint
from tests.support.grafts import random_graft


@pytest.fixture(scope="module")
def graft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_graft(
        tiny_llama, tmp_path_factory.mktemp("absent") / "g", hidden=8, heads=2, ffn=8
    )


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look at the hub fails the test: a path that is not there is nothing to look for."""
    import huggingface_hub

    def looked(*arguments: Any, **named: Any) -> None:
        raise AssertionError("looked for it on the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", looked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


# G: the graft. N: a path where nothing is.
MISSING = {
    "verify": "verify N --base G",
    "verify a base": "verify G --base N",
    "verify a base, static": "verify G --base N --static",
    "generate": "generate N hello",
    "generate with a base": "generate G hello --base N",
    "chat": "chat N",
    "train": "train N --recipe preference/paradetox",
    "graft": "graft ./N out",
    "attach": "attach N B out",
    "attach a base": "attach G ./N out",
    "strip": "strip N out",
    "compose": "compose G N out",
    "export": "export N out --to adapter",
    "inspect": "inspect N",
    "bench overhead": "bench overhead N",
    "bench lm-eval": "bench lm-eval N --tasks blimp",
    "bench lm-eval base": "bench lm-eval G --tasks blimp --base N",
    "bench preference": "bench preference N --pairs N",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_path_where_nothing_is(
    otter_here: Otter,
    graft: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    online: None,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        {"G": str(graft), "B": str(tiny_llama), "N": "nowhere", "./N": "./nowhere"}.get(w, w)
        for w in MISSING[name].split()
    ]
    started = time.monotonic()
    done = otter_here(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "nowhere does not exist" in done.stderr and "graft it first" not in done.stderr
    assert "hint:" in done.stderr and time.monotonic() - started < 10
    assert list(tmp_path.iterdir()) == [], "a proof, or an output, was written"


@pytest.mark.parametrize(
    "text", ["./base", "../base", "runs/base", "/runs/base", "a/b/c", "~/base"]
)
def test_what_looks_like_a_path_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: None, text: str
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OtterError, match="does not exist") as refused:
        find_base(text)
    assert refused.value.hint


def test_a_base_of_another_shape_is_told_before_any_model_runs(
    otter_here: Otter,
    graft: Path,
    tiny_checkpoint: TinyCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from otter_cli.verification import levels

    def ran(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(levels, "open_pair", ran)
    for other in (
        tiny_checkpoint("llama", num_hidden_layers=1),
        tiny_checkpoint("llama", intermediate_size=24),
        tiny_checkpoint("qwen2"),
    ):
        done = otter_here("verify", graft, "--base", other, "--json")
        assert done.returncode == 1, done.stderr
        assert "another model" in done.stdout and '"verdict": "different"' in done.stdout


DEVICES = {
    path: command for path, command in LEAVES if any("--device" in p.opts for p in command.params)
}


@pytest.mark.parametrize("path", DEVICES, ids=" ".join)
@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there(otter_here: Otter, path: tuple[str, ...], device: str) -> None:
    """Before anything else is looked at: the folders that are given do not exist either."""
    words: list[str] = []
    for param in DEVICES[path].params:
        if param.required:
            option = [param.opts[0]] if param.opts[0].startswith("-") else []
            words += [*option, "nowhere"]
    done = otter_here(*path, *words, "--device", device)
    assert done.returncode == 2 and f"--device {device}" in done.stderr, done.stderr
    assert "fault of otter" not in done.stderr and "hint:" in done.stderr


def test_a_device_from_python(graft: Path) -> None:
    from otter_cli.model.otter import OtterForCausalLM

    with pytest.raises(OtterError, match="--device cuda:99"):
        OtterForCausalLM.from_pretrained(graft, device="cuda:99")


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("./mine.yaml", "recipe file ./mine.yaml does not exist"),
        ("recipes/mine.yaml", "recipe file recipes/mine.yaml does not exist"),
        ("demo/rewrd", "no recipe named"),
        (".", "is a folder"),
    ],
)
def test_a_recipe_that_is_not_there(otter_here: Otter, graft: Path, recipe: str, what: str) -> None:
    done = otter_here("train", graft, "--recipe", recipe)
    assert done.returncode == 2 and what in done.stderr and "hint:" in done.stderr


# Text may be empty. Everything else that takes a text or a path may not.
TEXTS = {"prompt", "system", "stop", "template"}
NAMED = [
    (path, param)
    for path, command in LEAVES
    for param in command.params
    if param.name not in TEXTS
    and not getattr(param, "is_flag", False)
    and any(kind in str(param.type_descriptor.annotation) for kind in ("str", "Path"))
]


def test_an_empty_value_is_refused_wherever_a_path_or_a_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path("")` would be the current folder: `otter graft "" OUT` grafted what lay there."""
    from otter_cli.cli.verbs import app

    monkeypatch.chdir(tmp_path)
    assert len(NAMED) > 100
    for path, param in NAMED:
        arguments = [p for p in dict(LEAVES)[path].params if isinstance(p, TyperArgument)]
        if isinstance(param, TyperArgument):
            words = ["" if p is param else "x" for p in arguments]
        else:
            words = [*("x" for _ in arguments), param.opts[0], ""]
        with pytest.raises(OtterError, match="is empty") as refused:
            get_command(app).main([*path, *words], prog_name="otter", standalone_mode=False)
        name = param.metavar or param.name if isinstance(param, TyperArgument) else param.opts[0]
        assert str(refused.value).lower() == f"{name.strip('[]').lower()} is empty", path
    assert list(tmp_path.iterdir()) == []


UNKNOWN_SIGNALS = {
    "bench overhead": "bench overhead G --signal nope",
    "bench lm-eval": "bench lm-eval G --tasks blimp --guide nope",
    "bench preference": "bench preference G --prompts P --task-head G --reward-model G --gold G"
    " --signal nope",
    "bench speedup": "bench speedup G --prompts P --task-head G --signal nope",
    "bench detox": "bench detox G --prompts P --task-head G --detoxify G --signal nope",
    "bench detection": "bench detection G --pairs Q --signal nope",
    "generate, shown": "generate G hello --signal nope",
    "generate, guide": "generate G hello --guide nope:2",
    "generate, gate": "generate G hello --guide reward --gate nope>1",
    "generate, reject": "generate G hello --reject nope<0",
    "generate, draft": "generate G hello --draft nope",
    "train": "train G --pairs Q --signal nope",
    "export": "export G out --to vllm --draft nope",
}


@pytest.mark.parametrize("name", UNKNOWN_SIGNALS)
def test_a_signal_that_does_not_exist(
    otter_here: Otter, graft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"text": "abc"}\n')
    pair = '{"prompt": "a", "chosen": "abc", "rejected": "bcd"}\n'
    (tmp_path / "pairs.jsonl").write_text(pair * 3)
    words = {"G": str(graft), "P": "prompts.jsonl", "Q": "pairs.jsonl"}
    done = otter_here(*(words.get(word, word) for word in UNKNOWN_SIGNALS[name].split()))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "signal" in done.stderr and "hint:" in done.stderr
    assert "nope" in done.stderr or "--signal belongs to --shape" in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()
