"""The bridge to lm-evaluation-harness: the same documents, the same bits, names it knows."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from otter_cli.benchmarks.lm_eval.documents import (
    LmEvalDocument,
    compare_documents,
    evaluate,
)
from otter_cli.benchmarks.options import LmEvalTasks
from otter_cli.core.errors import OtterError
from tests.conftest import Otter
from tests.support.benchmark_models import BenchmarkModels, write_benchmark_models
from tests.support.planted_faults import add, after_position, leak, plant

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
TEXT = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{sentence_good}}}}"
doc_to_target: "a"
generation_kwargs: {{until: ["."], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def contestants(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkModels:
    return write_benchmark_models(tiny_llama, tmp_path_factory.mktemp("contestants"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks over five documents, as a user keeps them in a folder."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = [
        {"sentence_good": "a b c d" + " e" * n, "sentence_bad": "d c b" + " a" * n}
        for n in range(5)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "choice.yaml").write_text(CHOICE.format(name="tiny_choice", data=data))
    (folder / "text.yaml").write_text(TEXT.format(name="tiny_text", data=data))
    return folder


def bench(otter_here: Otter, graft: Path, tasks: Path, name: str, out: Path, *more: object) -> Any:
    return otter_here(
        "bench", "lm-eval", graft, "--tasks", name, "--include-path", tasks, "--batch", 3,
        "--out", out, "--json", *more,
    )  # fmt: skip


def test_every_document_is_the_base_s(
    otter_here: Otter, contestants: BenchmarkModels, tasks: Path, tmp_path: Path
) -> None:
    ran = bench(otter_here, contestants.graft, tasks, "tiny_choice,tiny_text", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    out = json.loads(ran.stdout)
    assert out["identity"]["tiny_choice"] == {
        "documents": 5, "equal": 5, "responses": 10, "responses_equal": 10, "first": None,
    }  # fmt: skip
    assert out["identity"]["tiny_text"]["responses_equal"] == 5
    assert out["metrics"]["base"] == out["metrics"]["graft"]
    assert out["metrics"]["base"]["tiny_choice"]["acc"]["n"] == 5
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()]
    assert len(lines) == 20 and {line["method"] for line in lines} == {"base", "graft"}
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored == {name: out[name] for name in stored}
    again = bench(otter_here, contestants.graft, tasks, "tiny_choice", tmp_path / "run")
    assert again.returncode == 2 and "not of this run" in again.stderr


def test_a_run_that_was_stopped_goes_on_with_the_method_that_it_was_at(
    otter_here: Otter,
    contestants: BenchmarkModels,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, out = [], tmp_path / "run"

    def counted(model: Any, tasks: LmEvalTasks) -> Any:
        asked.append(type(model).__name__)
        if asked == ["HFLM", "OtterLM"]:
            raise KeyboardInterrupt
        return evaluate(model, tasks)

    monkeypatch.setattr("otter_cli.benchmarks.lm_eval.run_lm_eval.evaluate", counted)
    assert bench(otter_here, contestants.graft, tasks, "tiny_choice", out).returncode == 130
    assert not (out / "result.json").exists()
    resumed = bench(otter_here, contestants.graft, tasks, "tiny_choice", out)
    assert resumed.returncode == 0, resumed.stderr
    assert asked == ["HFLM", "OtterLM", "OtterLM"]
    whole = bench(otter_here, contestants.graft, tasks, "tiny_choice", tmp_path / "whole")
    assert json.loads(whole.stdout)["metrics"] == json.loads(resumed.stdout)["metrics"]
    samples = [(folder / "samples.jsonl").read_bytes() for folder in (out, tmp_path / "whole")]
    assert samples[0] == samples[1]


def test_a_task_that_changed_between_two_sittings_is_refused(
    otter_here: Otter, contestants: BenchmarkModels, tasks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert bench(otter_here, contestants.graft, tasks, "tiny_choice", out).returncode == 0
    kept = json.loads((out / "methods" / "graft.json").read_text())
    kept["definitions"]["tiny_choice"] = "another"
    (out / "methods" / "graft.json").write_text(json.dumps(kept))
    again = bench(otter_here, contestants.graft, tasks, "tiny_choice", out)
    assert again.returncode == 2 and "a task file changed" in again.stderr


def test_a_leak_at_late_positions_is_seen_in_the_long_documents_alone(
    otter_here: Otter,
    contestants: BenchmarkModels,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, leak(add(1e-3), after_position(10)))
    ran = bench(otter_here, contestants.graft, tasks, "tiny_choice", tmp_path / "run", "--batch", 1)
    found = json.loads(ran.stdout)["identity"]["tiny_choice"]
    assert ran.returncode == 1
    assert 0 < found["equal"] < found["documents"] and found["first"] is not None


def test_guided_decoding_is_a_model_too_and_of_strength_0_the_base(
    otter_here: Otter, contestants: BenchmarkModels, tasks: Path, tmp_path: Path
) -> None:
    guided = ("--guide", "reward", "--candidates", 4, "--strength")
    texts = {}
    for strength in (0, 50):
        out = tmp_path / str(strength)
        ran = bench(otter_here, contestants.graft, tasks, "tiny_text", out, *guided, strength)
        assert ran.returncode == 0, ran.stderr
        lines = [json.loads(line) for line in (out / "samples.jsonl").open()]
        for method in ("graft", "guided"):
            texts[method, strength] = [x["responses"] for x in lines if x["method"] == method]
    assert texts["guided", 0] == texts["graft", 0] == texts["graft", 50]
    assert texts["guided", 50] != texts["graft", 50]


def test_what_has_no_log_likelihood_says_so(
    otter_here: Otter, contestants: BenchmarkModels, tasks: Path, tmp_path: Path
) -> None:
    ran = bench(otter_here, contestants.graft, tasks, "tiny_choice", tmp_path, "--guide", "reward")
    assert ran.returncode == 2 and "guided decoding has no log-likelihoods" in ran.stderr


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("tiny_nothing", (), "no task 'tiny_nothing'"),
        ("tiny_choice", ("--guide", "rewrad"), "no signal 'rewrad'"),
        ("tiny_choice", ("--dtype", "float8"), "float8"),
        ("tiny_choice", ("--include-path", "nowhere"), "nowhere is no folder"),
    ],
)
def test_bad_usage_exits_2(
    otter_here: Otter,
    contestants: BenchmarkModels,
    tasks: Path,
    tmp_path: Path,
    name: str,
    more: tuple[str, ...],
    what: str,
) -> None:
    ran = bench(otter_here, contestants.graft, tasks, name, tmp_path, *more)
    assert ran.returncode == 2 and what in ran.stderr and "hint:" in ran.stderr


def test_the_harness_finds_both_names(repository: Path) -> None:
    from lm_eval.api.registry import get_model

    from otter_cli.benchmarks.lm_eval import register_models
    from otter_cli.benchmarks.lm_eval.models import OtterGuidedLM, OtterLM

    register_models()
    register_models()
    assert get_model("otter") is OtterLM and get_model("otter-guided") is OtterGuidedLM
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["lm_eval.models"]
    assert declared == {
        name: f"{model.__module__}:{model.__name__}"
        for name, model in (("otter", OtterLM), ("otter-guided", OtterGuidedLM))
    }


def test_by_name_it_takes_the_harness_s_text_arguments(
    contestants: BenchmarkModels, tasks: Path
) -> None:
    from lm_eval.api.registry import get_model

    from otter_cli.benchmarks.lm_eval import register_models

    register_models()
    text = f"pretrained={contestants.graft},signal=reward,strength=2,candidates=3"
    model = get_model("otter-guided").create_from_arg_string(text, {"batch_size": 2})
    assert model.guide.strength == 2.0 and model.batch_size == 2
    found = evaluate(model, LmEvalTasks(tasks="tiny_text", include_path=tasks, limit=2))
    assert len(found.documents) == 2 and set(found.definitions) == {"tiny_text"}


def test_a_limit_draws_documents_and_names_them_by_their_own_places(
    contestants: BenchmarkModels, tasks: Path
) -> None:
    """The harness's own limit takes the head of a task."""
    from otter_cli.benchmarks.lm_eval.models import OtterLM

    model = OtterLM(pretrained=str(contestants.graft), batch_size=4)
    whole = {
        d.document: d
        for d in evaluate(model, LmEvalTasks(tasks="tiny_text", include_path=tasks)).documents
    }
    drawn = [
        evaluate(
            model, LmEvalTasks(tasks="tiny_text", include_path=tasks, limit=2, limit_seed=seed)
        ).documents
        for seed in range(4)
    ]
    assert len({tuple(d.document for d in documents) for documents in drawn}) > 1
    for documents in drawn:
        assert all(whole[d.document].digest == d.digest for d in documents)


def document(*responses: list[Any], digest: str = "") -> LmEvalDocument:
    return LmEvalDocument(
        task="task", document=7, digest=digest, responses=list(responses), metrics={}
    )


@pytest.mark.parametrize(
    ("base", "graft", "equal"),
    [
        (document([-1.5, True]), document([-1.5, True]), 1),
        (document([math.nan, True]), document([math.nan, True]), 1),
        (document([0.0, True]), document([-0.0, True]), 0),
        (document([-1.5, True]), document([math.nextafter(-1.5, 0), True]), 0),
        (document([-1.5, True]), document([-1.5, False]), 0),
        (document(["a"]), document(["a"], digest="of another document"), 0),
    ],
)
def test_one_bit_is_a_difference(base: LmEvalDocument, graft: LmEvalDocument, equal: int) -> None:
    found = compare_documents([base], [graft])["task"]
    assert (found.documents, found.equal) == (1, equal)
    assert found.first == (None if equal else 7)


def test_other_numbers_of_documents_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare_documents([document([-1.0, True])], [])


@pytest.mark.slow
def test_blimp_on_a_real_model(shared: Path, otter_here: Otter, tmp_path: Path) -> None:
    from tests.support.grafts import random_graft

    graft = random_graft(shared / "models" / "chat-7m", tmp_path / "g", hidden=16, heads=1, ffn=16)
    names = []
    for data in sorted((shared / "data" / "lm-eval").glob("blimp_*.jsonl")):
        names.append(data.stem)
        (tmp_path / f"{data.stem}.yaml").write_text(CHOICE.format(name=data.stem, data=data))
    ran = bench(otter_here, graft, tmp_path, ",".join(names), tmp_path / "run", "--limit", 25)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["identity"]
    assert set(found) == set(names)
    assert all(one["equal"] == one["documents"] == 25 for one in found.values())


def test_an_unknown_option_of_generation_is_refused(contestants: BenchmarkModels) -> None:
    from otter_cli.benchmarks.lm_eval.models import sampling_of_harness

    with pytest.raises(OtterError, match="num_beams"):
        sampling_of_harness({"num_beams": 3}, 4, 0)
    assert sampling_of_harness({"do_sample": False, "temperature": 0.7}, 4, 0).temperature == 0
    assert sampling_of_harness({"temperature": 0.7, "top_p": 0.9}, 4, 3).top_p == 0.9
