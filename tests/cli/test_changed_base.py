"""A base that changed under its graft is refused before any work, by every verb."""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import base_changes
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.surgery import graft
from tests.cli.test_help import LEAVES
from tests.conftest import REPOSITORY, Otter, TinyCheckpoint
from tests.support.grafts import plan_for
from tests.support.training import write_data, write_recipe

Change = Callable[[Path, Path], str]


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graft whose files are its own, to be copied and changed."""
    place = tmp_path_factory.mktemp("changed")
    base = Path(shutil.copytree(tiny_llama, place / "base"))
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    signals = ("reward", "toxicity", "future:2,plain")
    plan = plan_for(base, hidden=8, heads=2, ffn=16, signals=signals)
    graft(Checkpoint.open(base), place / "graft", plan, mode="copy")
    write_data(place)
    write_recipe(place)
    (place / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    return place


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "graft", tmp_path / "graft"))


def edit(name: str, old: str, new: str) -> Change:
    def change(folder: Path, other: Path) -> str:
        text = (folder / name).read_text()
        assert old in text, f"{name} does not hold {old}"
        (folder / name).write_text(text.replace(old, new, 1))
        return name

    return change


def flip(name: str) -> Change:
    """One bit of the last byte, with the size and the time of before."""

    def change(folder: Path, other: Path) -> str:
        path = folder / name
        status, data = path.stat(), bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return name

    return change


def fine_tuned(folder: Path, other: Path) -> str:
    shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")
    return "model.safetensors"


def added(folder: Path, other: Path) -> str:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return "chat_template.jinja"


def removed(folder: Path, other: Path) -> str:
    (folder / "generation_config.json").unlink()
    return "generation_config.json"


CHANGES: dict[str, Change] = {
    "a fine-tune": fine_tuned,
    "a bit of a weight": flip("model.safetensors"),
    "config": edit("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    "generation config": edit("generation_config.json", "0.5", "0.7"),
    "tokenizer, same size and time": flip("tokenizer.json"),
    "tokenizer config": edit("tokenizer_config.json", "{", '{"add_bos_token": false,'),
    "a chat template added": added,
    "a file removed": removed,
    "inserted tensors": flip("otter.safetensors"),
}

# What each verb is given: G is the graft, D a folder with data, N a path where nothing is.
COMMANDS = {
    "generate": "generate G hello",
    "chat": "chat G",
    "serve": "serve G",
    "train": "train G --recipe D/recipe.yaml",
    "train resumed": "train G --recipe D/recipe.yaml --resume",
    "train a baseline": "train G --recipe D/recipe.yaml --baseline head --to N",
    "train --find-lr": "train G --recipe D/recipe.yaml --find-lr",
    "train from data": "train G --pairs D/pairs.jsonl",
    "export adapter": "export G N --to adapter",
    "export wide": "export G N --to wide",
    "export base": "export G N --to base",
    "export vllm": "export G N --to vllm",
    "bench detox": "bench detox G --prompts D/prompts.jsonl --task-head G --detoxify D",
    "bench detection": "bench detection G --pairs D/pairs.jsonl",
    "bench lm-eval": "bench lm-eval G --tasks blimp --out N",
    "bench overhead": "bench overhead G --out N",
    "bench preference": "bench preference G --prompts D/prompts.jsonl --task-head G "
    "--reward-model D --gold D",
    "bench preference pairs": "bench preference G --pairs D/pairs.jsonl",
    "bench speedup": "bench speedup G --prompts D/prompts.jsonl --task-head G",
}
# These use a graft that they made themselves, or load one by a path that a run recorded.
INDIRECT = {"bench matrix", "bench rescore"}
# These compare every file with its digest by themselves, or use no graft.
OTHERS = {
    "import", "inspect", "graft", "attach", "strip", "compose", "verify", "demo", "recipes",
    "recipes ls",
    "recipes show", "recipes cp", "doctor", "bench report", "bench compare", "bench check",
    "data check",
}  # fmt: skip


def run(otter_here: Otter, command: str, folder: Path, data: Path, *more: str) -> Any:
    places = {"G": str(folder), "D": str(data), "N": str(folder.parent / "new")}
    words = [re.sub(r"^[GDN](?=/|$)", lambda m: places[m[0]], word) for word in command.split()]
    return otter_here(*words, *more)


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model, or reading training data, is work that must not have begun."""
    import otter_cli.model.load as load
    import otter_cli.training.run as training

    def begun(*arguments: Any, **named: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(load, "load_base", begun)
    monkeypatch.setattr(training, "load_signal_data", begun)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_changed_base_is_refused_before_any_work(
    otter_here: Otter,
    whole: Path,
    folder: Path,
    tiny_checkpoint: TinyCheckpoint,
    heavy: None,
    verb: str,
    change: str,
) -> None:
    if verb == "export base" and change in ("a chat template added", "inserted tensors"):
        pytest.skip("gives back what was recorded, and neither is part of it")
    name = CHANGES[change](folder, tiny_checkpoint("llama", seed=1))
    done = run(otter_here, COMMANDS[verb], folder, whole)
    assert done.returncode == 2, done.stderr
    assert name in done.stderr and "hint:" in done.stderr
    assert "fault of otter" not in done.stderr
    assert not (folder.parent / "new").exists()


def test_consent_is_for_one_run_and_is_recorded(
    otter_here: Otter, whole: Path, folder: Path, tiny_checkpoint: TinyCheckpoint
) -> None:
    fine_tuned(folder, tiny_checkpoint("llama", seed=1))
    ask = f"{COMMANDS['generate']} --max-new-tokens 3 --json"
    done = run(otter_here, ask, folder, whole, "--base-changed-ok")
    assert done.returncode == 0 and "another base" in done.stderr
    assert list(json.loads(done.stdout)["base_changed"]) == [str(folder / "model.safetensors")]
    assert base_changes() == {}
    assert run(otter_here, ask, folder, whole).returncode == 2


def test_training_on_a_changed_base_is_recorded_in_the_folder(
    otter_here: Otter, whole: Path, folder: Path
) -> None:
    edit("generation_config.json", "0.5", "0.7")(folder, folder)
    run(otter_here, COMMANDS["train"], folder, whole, "--base-changed-ok")
    record = json.loads((folder / "otter.json").read_text())
    changed = record["training"]["reward"]["data"]["base_changed"]
    assert list(changed) == [str(folder / "generation_config.json")]


def test_benchmarks_tell_an_accepted_base_from_the_recorded_one(folder: Path) -> None:
    from otter_cli.graft.grafted_folder import accept_changed_base
    from otter_cli.scorers.load import base_digest

    manifest = open_graft(folder)
    before = base_digest(folder, manifest)
    flip("model.safetensors")(folder, folder)
    with accept_changed_base():
        open_graft(folder)
        assert base_digest(folder, manifest) != before
    assert base_digest(folder, manifest) == before


def test_from_python(folder: Path) -> None:
    from otter_cli.model.otter import OtterForCausalLM

    edit("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')(folder, folder)
    with pytest.raises(OtterError, match=r"config\.json") as refused:
        OtterForCausalLM.from_pretrained(folder)
    assert "--base-changed-ok" in refused.value.hint
    assert OtterForCausalLM.from_pretrained(folder, if_base_changed="ignore").signal_configs


def test_an_adapter_is_compared_with_the_base_that_is_given(
    whole: Path, tmp_path: Path, tiny_checkpoint: TinyCheckpoint
) -> None:
    from otter_cli.serving.layouts import export_adapter

    export_adapter(whole / "graft", tmp_path / "adapter")
    open_graft(tmp_path / "adapter", base=whole / "base")
    with pytest.raises(OtterError, match="not the base of this insertion"):
        open_graft(tmp_path / "adapter", base=tiny_checkpoint("llama", seed=1))
    with pytest.raises(OtterError, match="adapter alone"):
        open_graft(tmp_path / "adapter")


def test_a_readme_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("more about it")
    open_graft(folder)


def test_every_verb_is_known_to_use_a_graft_or_not() -> None:
    """A new verb has to say whether it uses a graft, and then takes the option of consent."""
    taking = {
        " ".join(path)
        for path, command in LEAVES
        if any("--base-changed-ok" in param.opts for param in command.params)
    }
    here = {
        next(" ".join(path) for path, _ in LEAVES if command.startswith(" ".join(path) + " "))
        for command in COMMANDS.values()
    }
    assert taking == here | INDIRECT
    # Whatever loads a graft compares its base; this is for the option, and for the rows above.
    rest = {
        " ".join(path)
        for path, command in LEAVES
        if any("graft" in (getattr(param, "help", None) or "") for param in command.params)
    } - taking
    assert rest <= OTHERS, f"say in this test whether these use a graft: {rest - OTHERS}"


def test_a_graft_is_used_only_through_the_function_that_compares_its_base() -> None:
    """`Manifest.read` alone compares nothing; these files look at a graft and do not use it."""
    reading = {
        "graft/grafted_folder.py": "compares; writes tensors of a graft that was opened",
        "graft/surgery.py": "compares each file with its digest",
        "model/otter.py": "loads onto a base that is in memory",
        "verification/static.py": "compares, and reports what it sees",
        "verification/health.py": "reports what it sees",
        "cli/inspect.py": "shows the record",
        "cli/graft.py": "reads names",
        "cli/export.py": "reads how signals were trained, after the export",
        "scorers/text_scorer.py": "reads names, before the graft is loaded",
        "demo/sentiment_demo.py": "compares with the base that the user names",
        "serving/layouts.py": "reads again what it wrote",
        "serving/vllm/engine_checks.py": "compares what an export has as it was",
        "serving/vllm/export.py": "reads again what it wrote",
        "training/signal_data.py": "reads names, after the graft was opened",
        "training/baselines/readouts.py": "reads the source and sizes, after the graft was opened",
        "training/objectives/rollouts.py": "reads digests, after the graft was opened",
    }
    package = REPOSITORY / "otter_cli"
    calls = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Manifest.read":
                calls.add(path.relative_to(package).as_posix())
    assert calls == reading.keys(), f"use open_graft: {calls ^ reading.keys()}"
