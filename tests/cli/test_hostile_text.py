"""Strings that a terminal would obey, wherever they come from: no verb lets one through, and none
loses a letter."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Otter
from tests.support.grafts import random_graft
from tests.support.hostile_text import CONTROL, HOSTILE, shown_as

# A file's name holds neither of these.
NAMES = {name: text.replace("/", "|") for name, text in HOSTILE.items() if "\x00" not in text}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
hostile_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "g"
    return random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16)


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    """The command switches these off before transformers is imported; here it is imported."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def _check(run: Any, text: str, *, code: int = 0) -> None:
    """A line break may fall within the string, but no letter of it may be missing."""
    written = run.stdout + run.stderr
    assert not CONTROL.search(written), written
    assert "Traceback" not in written and "fault of otter" not in written, written
    assert (
        shown_as(text) in "".join(written.split("\n")).replace(" ", "") or shown_as(text) in written
    )
    assert run.returncode == code, written


@hostile_name
@pytest.mark.parametrize(
    "arguments",
    [
        lambda folder: ("inspect", folder),
        lambda folder: ("doctor", folder),
        lambda folder: ("verify", folder, "--static", "--proof", folder.with_name("proof.json")),
        lambda folder: ("graft", folder, folder.with_name("more"), "--signal", "more=reward"),
        lambda folder: ("strip", folder, folder.with_name("base")),
    ],
    ids=["inspect", "doctor", "verify", "graft", "strip"],
)
def test_a_folder_s_name(
    otter_here: Otter,
    folder: Path,
    tmp_path: Path,
    name: str,
    arguments: Callable[[Path], tuple[Any, ...]],
) -> None:
    named = tmp_path / f"{name}"
    shutil.copytree(folder, named)
    run = otter_here(*arguments(named), env={})
    verb = run.args[0]
    if verb in ("inspect", "doctor"):
        _check(run, name)
    else:
        _check(run, "")
    as_json = otter_here("inspect", named, "--json")
    assert not CONTROL.search(as_json.stdout)
    assert json.loads(as_json.stdout)["path"] == str(named)


@hostile_name
@pytest.mark.parametrize("verb", ["inspect", "doctor", "generate", "train", "verify", "export"])
def test_a_name_in_an_error(otter_here: Otter, tmp_path: Path, name: str, verb: str) -> None:
    missing = tmp_path / name
    more: dict[str, tuple[Any, ...]] = {
        "generate": ("hi",),
        "train": ("--recipe", "demo/signals"),
        "verify": ("--static", "--proof", tmp_path / "proof.json"),
        "export": (tmp_path / "out", "--to", "adapter"),
    }
    _check(otter_here(verb, missing, *more.get(verb, ())), name, code=2)


@hostile
@pytest.mark.parametrize("option", ["--guide", "--draft", "--label", "--gate", "--reject"])
def test_an_option_s_value(otter_here: Otter, folder: Path, text: str, option: str) -> None:
    if "\x00" in text and option == "--draft":
        pytest.skip("no folder's name")
    run = otter_here("generate", folder, "hi", option, text, "--max-new-tokens", "1")
    assert not CONTROL.search(run.stdout + run.stderr)
    assert "fault of otter" not in run.stderr


@hostile
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_prompt(otter_here: Otter, folder: Path, text: str, stream: str) -> None:
    if "\x00" not in text:  # which no argument can hold
        run = otter_here("generate", folder, text, "--max-new-tokens", "2", stream, "--details")
        _check(run, text)
    prompts = folder.with_name("prompts.jsonl")
    prompts.write_text(json.dumps({"prompt": text}) + "\n" + json.dumps({"prompt": "b"}) + "\n")
    options = ("--max-new-tokens", "1", stream, "--details")
    _check(otter_here("generate", folder, "--file", prompts, *options), text)


@hostile
def test_a_prompt_in_json_is_the_prompt(otter_here: Otter, folder: Path, text: str) -> None:
    prompts = folder.with_name("prompts.jsonl")
    prompts.write_text(json.dumps({"prompt": text}) + "\n")
    run = otter_here("generate", folder, "--file", prompts, "--max-new-tokens", "1", "--json")
    assert not CONTROL.search(run.stdout)
    assert json.loads(run.stdout)["prompt"] == text


@hostile
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_token_of_the_model(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path, text: str, stream: str
) -> None:
    """Every token of this vocabulary is the hostile string: whatever the model says, it says it."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    path = base / "tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    for token, index in list(vocabulary.items()):
        if token not in ("<pad>", "<s>", "</s>", "h", "i"):
            del vocabulary[token]
            vocabulary[f"{text}{index}."] = index
    path.write_text(json.dumps(data))
    folder = random_graft(base, tmp_path / "g", hidden=8, heads=2, ffn=16)
    run = otter_here("generate", folder, "hi", "--max-new-tokens", "4", stream)
    _check(run, text)


@hostile
def test_a_value_in_a_recipe(otter_here: Otter, folder: Path, tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"steps": text, "signals": {text: {"objective": text}}}))
    run = otter_here("train", folder, "--recipe", recipe)
    assert run.returncode == 2
    assert not CONTROL.search(run.stdout + run.stderr)
    assert "fault of otter" not in run.stderr


@hostile
def test_a_label(otter_here: Otter, tiny_llama: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "g"
    graft = otter_here("graft", tiny_llama, out, "--signal", f"classes:{text},other")
    assert not CONTROL.search(graft.stdout + graft.stderr)
    if graft.returncode == 2:
        assert "fault of otter" not in graft.stderr
        return
    run = otter_here("generate", out, "hi", "--max-new-tokens", "2", "--details")
    _check(run, text if len(text) < 30 else "")


@pytest.mark.parametrize("option", ["prompt", "--stop", "--guide"])
def test_bytes_that_are_no_text(otter_here: Otter, folder: Path, option: str) -> None:
    latin = "caf\udce9"  # as Python reads the bytes of latin-1 in an argument
    run = otter_here(
        "generate", folder, *((latin,) if option == "prompt" else ("hi", option, latin))
    )
    assert run.returncode == 2
    assert "is not UTF-8 text" in run.stderr and "caf\\udce9" in run.stderr


@pytest.mark.parametrize("locale", [("utf-8", "strict"), ("ascii", "surrogateescape")])
def test_bytes_that_are_no_text_on_stdin(
    otter_here: Otter, folder: Path, monkeypatch: pytest.MonkeyPatch, locale: tuple[str, str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"fine\ncaf\xe9\n"), *locale)
    monkeypatch.setattr("sys.stdin", stdin)
    run = otter_here("generate", folder, "-")
    assert run.returncode == 2
    assert "stdin, line 2: byte 4 (0xe9) is not UTF-8" in run.stderr


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_stop_is_refused(otter_here: Otter, folder: Path, text: str) -> None:
    run = otter_here("generate", folder, "hi", "--stop", text, "--max-new-tokens", "1")
    assert run.returncode == (0 if text else 2)
    assert ("--stop is empty" in run.stderr) == (not text)


def test_a_traceback_and_a_warning_are_escaped(
    otter_here: Otter, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = otter_here("inspect", tmp_path / "a\x1b]0;title\x07b", "--debug")
    assert "Traceback" in run.stderr and not CONTROL.search(run.stderr)


def test_what_libraries_log_and_warn_is_escaped(
    otter_here: Otter, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging
    import warnings

    otter_here("--version")
    logger = logging.getLogger("a library")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.error("no %s", "\x1b[2J")
    logger.removeHandler(handler)
    assert capfd.readouterr().err == "no \\x1b[2J\n"
    assert "\\x1b[2J" in warnings.formatwarning("a\x1b[2Jb", UserWarning, "f.py", 1)
