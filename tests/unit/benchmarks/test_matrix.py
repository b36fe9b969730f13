"""Many settings and seeds: combinations, training that is found again, one table over seeds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats
from transformers import LlamaConfig

from otter_cli.benchmarks.matrix import run_matrix as matrix_train
from otter_cli.benchmarks.matrix.recipe import load_matrix, matrix_cells
from otter_cli.benchmarks.matrix.run_matrix import MatrixResult, SeedFigure, aggregate_seeds
from otter_cli.benchmarks.results import BenchmarkResult
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import parse_layers, resolve_config
from otter_cli.graft.manifest import Manifest
from otter_cli.signals.config import parse_signal
from tests.conftest import Otter
from tests.support.benchmark_models import BenchmarkModels
from tests.support.training import TOXICITY, write_data, write_recipe

PARTS = {"ffn": {"graft": {"heads": 0}}, "attention": {"graft": {"ffn": 0}}, "both": {}}


def write_matrix(folder: Path, **values: object) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def ablation(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    write_data(folder)
    return write_matrix(
        folder,
        base=str(tiny_llama),
        recipe=str(write_recipe(folder)),
        seeds=[0, 1],
        metrics=["accuracy"],
        common={"graft": {"hidden": 8, "heads": 2, "ffn": 8}, "train": {"steps": 2}},
        axes={"part": PARTS},
    )


def test_an_ablation_trains_each_part_at_each_seed_and_once_only(
    otter_here: Otter, ablation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    ran = otter_here("bench", "matrix", ablation, "--out", out, "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["cells"]
    assert [cell["values"]["part"] for cell in found] == ["ffn", "attention", "both"]
    ffn, attention, both = (cell["parameters"] for cell in found)
    assert ffn != attention and max(ffn, attention) < both
    for cell, part in zip(found, PARTS, strict=True):
        assert len(set(cell["runs"])) == 2
        figure = cell["figures"]["insertion"]["accuracy"]
        assert figure["n"] == 2 and figure["mean"] == pytest.approx(np.mean(figure["values"]))
        for folder, seed in zip(cell["runs"], (0, 1), strict=True):
            manifest = Manifest.read(out / folder)
            (config,) = manifest.insertions
            assert (config.heads == 0, config.ffn == 0) == (part == "ffn", part == "attention")
            assert manifest.training["reward"].seed == config.seed == seed
            own = manifest.training["reward"].metrics["accuracy"]["mean"]
            assert own == figure["values"][seed]
    assert "part attention" in (out / "report.md").read_text()

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(matrix_train, "train", never)
    again = otter_here("bench", "matrix", ablation, "--out", out, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["cells"] == found


def test_a_bench_runs_at_every_value_in_a_folder_of_its_own(
    otter_here: Otter, contestants: BenchmarkModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_matrix(
        tmp_path,
        benchmark="speedup",
        metrics=["tokens_per_step", "speed_up"],
        common={
            "bench": {
                "folder": str(contestants.graft),
                "task_head": str(contestants.head),
                "prompts": str(contestants.prompts),
                "max_new_tokens": 4,
            }
        },
        axes={
            "batch": {"1": {}, "2": {"bench": {"batch": 2}}},
            "temperature": {"0": {}, "1": {"bench": {"temperature": 1.0}}},
        },
    )
    ran = otter_here("bench", "matrix", path, "--out", tmp_path / "run", "--limit", 2)
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 100 and "one seed" in ran.stdout
    result = MatrixResult.read(tmp_path / "run")
    assert len({run for cell in result.cells for run in cell.runs}) == 4
    assert result.cells[3].values == {"batch": "2", "temperature": "1"}
    plain = result.cells[0].figures["plain"]["tokens_per_step"]
    assert (plain.mean, plain.low, plain.n) == (1.0, None, 1)
    lines = (tmp_path / "run" / result.cells[3].runs[0] / "samples.jsonl").read_text()
    assert len(lines.splitlines()) == 2 * 2 * 4
    monkeypatch.setattr("otter_cli.benchmarks.runner.run_benchmark._generate_samples", None)
    assert (
        otter_here("bench", "matrix", path, "--out", tmp_path / "run", "--limit", 2).returncode == 0
    )


def test_a_graft_beside_is_trained_at_each_seed_and_found_by_its_name(
    otter_here: Otter, tiny_llama: Path, contestants: BenchmarkModels, tmp_path: Path
) -> None:
    write_data(tmp_path)
    recipe = write_recipe(tmp_path)
    (tmp_path / "q").mkdir()
    values = {"objective": "autoregressive", "train": {"path": "pairs.jsonl"}, "held_out": 0.2}
    other = write_recipe(tmp_path / "q", {"q": values})
    path = write_matrix(
        tmp_path,
        base=str(tiny_llama),
        recipe=str(recipe),
        data=str(tmp_path),
        baselines=["head", "separate"],
        beside={
            "q": {
                "recipe": str(other),
                "graft": {"hidden": 8, "heads": 2, "ffn": 8, "signal": "q=action-reward"},
                "train": {"steps": 1},
            },
            "wide-head": {
                "recipe": str(recipe),
                "baseline": "head",
                "graft": {"hidden": 8, "heads": 2, "ffn": 16},
                "train": {"steps": 1},
            },
        },
        benchmark="preference",
        seeds=[0, 1],
        metrics=["gold_reward", "gold_reward over plain", "win_rate"],
        common={
            "graft": {"hidden": 8, "heads": 2, "ffn": 8},
            "train": {"steps": 1},
            "bench": {
                "prompts": str(contestants.prompts),
                "gold": str(contestants.gold),
                "max_new_tokens": 2,
                "limit": 2,
                "method": [
                    "by-q=vocabulary:graft={q},signal=q,strength=1",
                    "by-head=value:graft={wide-head},strength=1",
                ],
            },
        },
    )
    ran = otter_here("bench", "matrix", path, "--out", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert "gold reward over plain" in (tmp_path / "run" / "report.md").read_text()
    (cell,) = MatrixResult.read(tmp_path / "run").cells
    methods = ["plain", "insertion", "task-head", "args", "by-q", "by-head"]
    assert list(cell.figures) == methods
    guides = set()
    for run, seed in zip(cell.runs, (0, 1), strict=True):
        result = BenchmarkResult.read(tmp_path / "run" / run)
        guides.add(result.settings.methods["by-q"].models[0].weights)
        assert result.settings.methods["by-head"].models[0].name == "head"
        own = result.methods["by-q"].against_plain["gold_reward"]
        over = cell.figures["by-q"]["gold_reward over plain"]
        assert over.values[seed] == own.mean and over.low is not None and over.low <= own.mean
    assert len(guides) == 2


def test_monitors_are_trained_at_each_seed_and_read_the_recipe_s_rows_or_pairs(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    write_data(tmp_path)
    graft = {"hidden": 8, "heads": 2, "ffn": 8, "signal": "toxicity"}
    path = write_matrix(
        tmp_path,
        base=str(tiny_llama),
        recipe=str(write_recipe(tmp_path, {"toxicity": TOXICITY})),
        data=str(tmp_path),
        baselines=["head", "separate"],
        beside={
            "probe": {
                "recipe": str(tmp_path / "recipe.yaml"),
                "baseline": "probe",
                "graft": graft,
                "train": {"steps": 1},
            }
        },
        benchmark="detection",
        seeds=[0, 1],
        metrics=["detected", "auroc"],
        common={
            "graft": graft,
            "train": {"steps": 1},
            "bench": {
                "monitor": ["task-head={head}", "probe={probe}"],
                "classifier": "{separate}",
                "limit": 8,
            },
        },
        axes={
            "texts": {
                "held out": {},
                "pairs": {"bench": {"pairs": str(tmp_path / "pairs.jsonl")}},
            }
        },
    )
    ran = otter_here("bench", "matrix", path, "--out", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 100
    # More methods than cells: a table for each cell, a method a line.
    assert "texts held out" in ran.stdout and "texts pairs" in ran.stdout
    assert re.search(r"^task-head +0\.", ran.stdout, re.MULTILINE)
    held_out, pairs = MatrixResult.read(tmp_path / "run").cells
    for cell, file in ((held_out, "labelled.jsonl"), (pairs, "pairs.jsonl")):
        assert list(cell.figures) == ["insertion", "task-head", "probe", "classifier"]
        weights = set()
        for run, seed in zip(cell.runs, (0, 1), strict=True):
            result = BenchmarkResult.read(tmp_path / "run" / run)
            assert result.settings.prompts.file == file
            weights |= {result.settings.methods[name].models[-1].weights for name in cell.figures}
            own = result.methods["classifier"].metrics["auroc"].mean
            assert cell.figures["classifier"]["auroc"].values[seed] == own
        assert len(weights) == 2 * len(cell.figures)


def test_intervals_over_seeds_are_student_s() -> None:
    draw = np.random.default_rng(0)
    for n in range(2, 32):
        values = draw.normal(size=n).tolist()
        found = aggregate_seeds([SeedFigure(value) for value in values])
        low, high = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
        assert found.low is not None and found.high is not None
        assert found.low == pytest.approx(low, abs=2e-3)
        assert found.high == pytest.approx(high, abs=2e-3)


def test_an_interval_over_seeds_holds_the_prompts_chance_too() -> None:
    equal = aggregate_seeds([SeedFigure(0.5, 0.1, 0.2)] * 3)
    assert equal.low is not None and equal.high is not None
    # Seeds that agree say nothing of other prompts: the runs' own interval is what is left.
    assert (equal.low, equal.high) == (pytest.approx(0.4), pytest.approx(0.7))
    both = aggregate_seeds([SeedFigure(0.4, 0.3, 0.3), SeedFigure(0.6, 0.3, 0.3)])
    assert both.low == pytest.approx(0.5 - np.hypot(12.706 * 0.1, 0.3))


def test_a_try_cuts_what_an_axis_sets_too(tmp_path: Path) -> None:
    path = write_matrix(
        tmp_path,
        base="b",
        recipe="r",
        benchmark="detox",
        metrics=["tokens"],
        axes={"size": {"large": {"train": {"steps": 90}, "bench": {"limit": 90}}, "usual": {}}},
    )
    for cell in matrix_cells(load_matrix(path).limited_to(2)):
        assert cell.change.train["steps"] == cell.change.bench["limit"] == 2


def test_a_later_axis_counts_more_and_the_common_part_least(tmp_path: Path) -> None:
    def bench(**options: int) -> dict[str, dict[str, int]]:
        return {"bench": options}

    path = write_matrix(
        tmp_path, benchmark="speedup", metrics=["tokens"], common=bench(batch=1, limit=1, seed=1),
        axes={"a": {"x": bench(batch=2, limit=2)}, "b": {"y": bench(batch=3)}},
    )  # fmt: skip
    (cell,) = matrix_cells(load_matrix(path))
    assert cell.change.bench == {"batch": 3, "limit": 2, "seed": 1}
    assert cell.name == "a x, b y"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"metrics": ["a"]}, "nothing to do"),
        ({"metrics": ["a"], "base": "x"}, "base and recipe go together"),
        ({"metrics": ["a"], "benchmark": "speedup", "axis": {}}, "unknown key 'axis'"),
        ({"metrics": ["a"], "benchmark": "speed"}, "benchmark"),
        (
            {"metrics": ["a"], "benchmark": "speedup", "beside": {"q": {"recipe": "r"}}},
            "beside without base and recipe",
        ),
        ({"benchmark": "speedup"}, "metrics"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(tmp_path: Path, values: dict, what: str) -> None:
    with pytest.raises(OtterError, match=what):
        load_matrix(write_matrix(tmp_path, **values))


def test_an_option_of_no_bench_and_a_figure_of_none_are_told_with_their_cell(
    otter_here: Otter, contestants: BenchmarkModels, tmp_path: Path
) -> None:
    bench = {
        "folder": str(contestants.graft), "task_head": str(contestants.head),
        "prompts": str(contestants.prompts), "max_new_tokens": 2, "limit": 1,
    }  # fmt: skip
    for metrics, extra, what in (
        (["tokens"], {"batsch": 2}, "the bench of cell 'all': unknown key 'batsch'"),
        (["tokns"], {}, "cell 'all' has no figure 'tokns'"),
    ):
        path = write_matrix(
            tmp_path, benchmark="speedup", metrics=metrics, common={"bench": {**bench, **extra}}
        )
        ran = otter_here("bench", "matrix", path, "--out", tmp_path / "run")
        assert ran.returncode == 2 and what in ran.stderr


def test_every_matrix_that_ships_is_one(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTTER_SHARED", "OTTER_MODELS", "OTTER_DATA"):
        monkeypatch.setenv(name, "/somewhere")
    shape = base_shape(
        LlamaConfig(
            hidden_size=256, num_attention_heads=8, num_key_value_heads=4, intermediate_size=1376
        ).to_dict()
        | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    )
    found = [*repository.glob("recipes/matrix/*.yaml")]
    found += [repository / "recipes/paper" / f"{name}.yaml" for name in ("preference", "detox")]
    assert len(found) >= 5
    for path in found:
        asked = load_matrix(path)
        assert asked.recipe is not None
        assert (repository / "recipes" / f"{asked.recipe}.yaml").is_file()
        for cell in matrix_cells(asked):
            given = dict(cell.change.graft)
            assert parse_layers(str(given.pop("layers", "all")), 8)
            signals = given.pop("signal", "reward")
            assert resolve_config(shape, signals=(parse_signal(signals),), **given).signals
        for one in asked.beside.values():
            assert (repository / "recipes" / f"{one.recipe}.yaml").is_file()
