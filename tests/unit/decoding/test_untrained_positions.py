"""A warning for a signal that is read where it was not trained: once, for every way of reading."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from otter_cli.api.model import load
from otter_cli.benchmarks.methods import detectors
from otter_cli.benchmarks.methods.specs import build_methods, parse_methods
from otter_cli.benchmarks.model_pool import ModelPool
from otter_cli.benchmarks.options import DetectionOptions
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble_detection
from otter_cli.benchmarks.tasks.detection import MonitoredTexts, texts_of_pairs
from otter_cli.data.pairs import PreferencePair
from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.bounds import Gate, SignalBound, Stops
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide, guide_for_signal
from otter_cli.decoding.request_checks import request_warnings
from otter_cli.decoding.sampling import Sampling
from otter_cli.graft.manifest import Manifest, TrainingRecord, untrained_position_warnings
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.scorers.load import load_graft
from otter_cli.training.objectives import AnyObjective
from otter_cli.training.recipe import load_recipe
from otter_cli.training.run import train
from tests.conftest import Otter
from tests.support.grafts import random_graft
from tests.support.training import REWARD, small_graft, small_recipe

GUIDE = SignalGuide("reward", 1.0, 3)
BOUND = SignalBound("reward", -1e9, above=False)


def _graft(base: Path, out: Path, *, kind: str = "reward", **record: Any) -> Path:
    random_graft(base, out, signals=(kind,))
    manifest = Manifest.read(out)
    trained = TrainingRecord(
        steps=1, seed=0, objective="bradley-terry", recipe_sha256="0", **record
    )
    manifest.model_copy(update={"training": {kind.partition("=")[0]: trained}}).write(out)
    return out


@pytest.fixture(scope="module")
def last(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _graft(tiny_llama, tmp_path_factory.mktemp("last") / "graft", positions="last")


@pytest.fixture
def model(last: Path) -> Iterator[OtterForCausalLM]:
    return OtterForCausalLM.from_pretrained(last)


@pytest.mark.parametrize(
    ("asked", "use"),
    [
        ({"guide": GUIDE}, "guides"),
        ({"guide": GUIDE, "gate": Gate(signal=BOUND)}, "guides and opens a gate"),
        ({"stops": Stops(signals=(BOUND,))}, "rejects"),
        ({"signals": ["reward"]}, "is read at every token"),
    ],
    ids=["guide", "gate", "reject", "shown"],
)
def test_each_way_of_reading_warns_and_only_once(
    model: OtterForCausalLM, asked: dict[str, Any], use: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        generate(model, [[1, 5]], Sampling(2), **asked)
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("warning: ") == 1
    assert f"trained at the last token of whole texts alone, but here it {use} before that" in told
    assert "positions: every" in told


def test_what_is_read_at_the_end_warns_of_nothing(
    model: OtterForCausalLM, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn = Sampling(4, temperature=1.0)
    best_of(model, [[1, 5]], drawn, BestOf(2, signal="reward"))
    generate(model, [[1, 5]], Sampling(2))
    generate(model, [[1, 5]], Sampling(2), guide=SignalGuide("reward", 0.0, 3))
    assert "warning" not in capfd.readouterr().err
    best_of(model, [[1, 5]], drawn, BestOf(2, signal="reward", block=2))
    assert "chooses between unfinished texts before that" in capfd.readouterr().err


@pytest.mark.parametrize("record", [{"positions": "every"}, {"positions": "drawn"}, {}])
def test_signals_of_every_prefix_and_of_older_folders_warn_of_nothing(
    tiny_llama: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    model = OtterForCausalLM.from_pretrained(_graft(tiny_llama, tmp_path / "graft", **record))
    assert not request_warnings(model, guides=[GUIDE], signals=["reward"])


def test_a_record_from_before_positions_were_written_is_read(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = _graft(tiny_llama, tmp_path / "graft")
    path = folder / "otter.json"
    written = json.loads(path.read_text())
    for key in ("positions", "end"):
        del written["training"]["reward"][key]
    path.write_text(json.dumps(written))
    training = Manifest.read(folder).training
    assert training["reward"].positions is None
    assert not untrained_position_warnings(training, {"reward": ["guides"]})


def test_the_python_interface_and_the_command_line_say_it(
    last: Path, otter_here: Otter, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load(last)
    loaded.score("abc")
    loaded.generate("abc", max_new_tokens=2, guide={"reward": 1.0})
    told = capfd.readouterr().err
    assert "is read at every token before that" in told
    assert "guides and is read at every token before that" in told
    ran = otter_here(
        "generate", last, "abc", "--guide", "reward:1", "--max-new-tokens", 2, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    (warning,) = json.loads(ran.stdout)["warnings"]
    assert warning.startswith("signal 'reward' was trained at the last token of whole texts alone")
    assert "warning: signal 'reward' was trained" in " ".join(ran.stderr.split())
    exported = last.parent / "adapter"
    done = otter_here("export", last, exported, "--to", "adapter", "--json")
    assert json.loads(done.stdout)["warnings"] == []


def test_a_served_folder_says_it(last: Path, otter_here: Otter, tmp_path: Path) -> None:
    done = otter_here("export", last, tmp_path / "served", "--to", "vllm", "--json")
    assert done.returncode == 0, done.stderr
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "is read at every token before that" in warning


def test_methods_of_a_benchmark_carry_it(last: Path) -> None:
    graft = load_graft(last, "reward", device="cpu")
    texts = ["value:strength=1", "early-stop", "best-of-n:n=2", "a=best-of-n:n=2,block=2", "plain"]
    methods = build_methods(parse_methods(texts), ModelPool(graft, "reward"), 3)
    assert {name for name, method in methods.items() if method.warnings} == {
        "value", "early-stop", "a",
    }  # fmt: skip


def test_a_monitor_of_last_tokens_is_told_in_the_result(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _graft(tiny_llama, tmp_path / "graft", kind="toxicity", positions="last")
    texts = MonitoredTexts(
        Path("p.jsonl"),
        texts_of_pairs([PreferencePair(f"a friend {i}", f"a fool {i}") for i in (1, 2)]),
    )
    benchmark = assemble_detection(DetectionOptions(folder=folder), texts)
    result = run_benchmark(benchmark, tmp_path / "run").result
    (warning,) = result.warnings
    assert warning.startswith("insertion: signal 'toxicity' was trained at the last token")
    assert detectors.base_detector(load_graft(folder, "toxicity", device="cpu")).warnings == ()


@pytest.mark.parametrize(("positions", "eos"), [("last", True), ("every", False)])
def test_training_records_where_it_trained(
    tiny_llama: Path, tmp_path: Path, positions: str, eos: bool
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft")
    section = {**REWARD, "positions": positions, "eos": eos}
    train(folder, small_recipe(tmp_path, {"reward": section}, steps=1))
    record = Manifest.read(folder).training["reward"]
    assert (record.positions, record.end) == (positions, eos)
    model = OtterForCausalLM.from_pretrained(folder)
    guide = guide_for_signal(model, "reward", 1.0, 3)
    # A signal that was not trained at ends leaves the score of a text as it is at its end.
    assert isinstance(guide, SignalGuide) and guide.end is eos
    assert AutoTokenizer.from_pretrained(folder).eos_token_id is not None


def test_every_objective_says_where_it_trains() -> None:
    from typing import get_args

    kinds = get_args(get_args(AnyObjective)[0])
    assert len(kinds) >= 9
    for kind in kinds:
        field = kind.model_fields.get("positions")
        at = kind.trained_positions.fget(kind.model_construct())  # type: ignore[attr-defined]
        assert at in ("last", "every", "drawn")
        if field is not None:
            for positions in ("last", "every"):
                assert kind.model_construct(positions=positions).trained_positions == positions


# Recipes whose signals are read at the end of whole texts alone.
WHOLE_TEXTS = ("matrix/ablation", "matrix/sizes")


def test_recipes_that_are_meant_for_guidance_train_every_prefix(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    for variable in ("OTTER_SHARED", "OTTER_DATA", "OTTER_MODELS"):
        monkeypatch.setenv(variable, "/nowhere")
    checked = 0
    for path in sorted((repository / "recipes").rglob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        if "signals" not in values:
            continue
        for name, objective in load_recipe(path).signals.items():
            assert objective.trained_positions != "last", f"{path}: {name}"
            checked += 1
    assert checked >= 10
    for name in WHOLE_TEXTS:
        values = yaml.safe_load((repository / "recipes" / f"{name}.yaml").read_text())
        assert values["common"]["train"]["signals.reward.positions"] == "last"
        assert "benchmark" not in values
