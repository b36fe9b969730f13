"""The recipes of the paper's sizes, as they ship, on folders in the hub's layout: only paths are
given, and `--limit 2` makes a try of them."""

import gzip
import json
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from otter_cli.benchmarks.matrix.run_matrix import MatrixResult
from otter_cli.graft.manifest import Manifest
from tests.conftest import Otter, TinyCheckpoint
from tests.support.benchmark_models import write_classifier, write_reward_model

LLAMA, HH = "meta-llama/Llama-2-7b-hf", "Anthropic/hh-rlhf/harmless-base"


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base wide enough for the insertion of a 7B one, in shards, and rows of each data set."""
    hub = tmp_path_factory.mktemp("hub")
    base = tiny_checkpoint(
        "llama", num_hidden_layers=1, hidden_size=256, intermediate_size=1376, head_dim=64,
        max_position_embeddings=1024, max_shard="2MB",
    )  # fmt: skip
    (hub / LLAMA).parent.mkdir(parents=True)
    (hub / LLAMA).symlink_to(base)
    write_reward_model(base, hub / "OpenAssistant/reward-model-deberta-v3-large-v2", seed=3)
    (hub / "sentence-transformers").mkdir()
    (hub / "sentence-transformers/all-mpnet-base-v2").symlink_to(base)
    write_classifier(hub / "detoxify-unbiased")
    write_rows(hub)
    return hub


def write_rows(hub: Path) -> None:
    (hub / HH).mkdir(parents=True)
    for split in ("train", "test"):
        said = f"\n\nHuman: Are you {split}?\n\nAssistant:"
        pairs = [{"chosen": f"{said} yes {i}", "rejected": f"{said} no {i}"} for i in range(70)]
        with gzip.open(hub / HH / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    prompts = hub / "allenai/real-toxicity-prompts/prompts.jsonl"
    prompts.parent.mkdir(parents=True)
    rows = [
        {"filename": "a.txt", "prompt": {"text": f"He said {i}", "toxicity": i / 2},
         "continuation": {"text": " so", "toxicity": None}}
        for i in range(3)
    ]  # fmt: skip
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comments = hub / "google/civil_comments/data"
    comments.mkdir(parents=True)
    for name in ("train-00000-of-00002", "test-00000-of-00001"):
        texts = [f"comment {i} of {name[:4]}" for i in range(70)]
        table = arrow.table({"text": texts, "toxicity": [i % 5 / 4 for i in range(70)]})
        parquet.write_table(table, comments / f"{name}.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preference", "detox"])
def test_the_paper_s_recipe_runs_unchanged_apart_from_paths(
    hub: Path, name: str, otter_here: Otter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTTER_MODELS", str(hub))
    monkeypatch.setenv("OTTER_DATA", str(hub))
    ran = otter_here("bench", "matrix", f"paper/{name}", "--limit", 2, "--out", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    result = MatrixResult.read(tmp_path / "run")
    (cell,) = result.cells
    assert len(cell.runs) == len(result.seeds) == 1
    assert {"plain", "insertion", "task-head"} < cell.figures.keys()
    for method in cell.figures.values():
        assert all(figure.n == 1 for figure in method.values())
    graft = next((tmp_path / "run" / "grafts").glob("*/graft"))
    (config,) = Manifest.read(graft).insertions
    assert (config.hidden, config.heads, config.ffn) == (256, 4, 1376)


def test_without_its_folders_a_recipe_says_which_variable_is_missing(
    otter_here: Otter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTTER_MODELS", raising=False)
    ran = otter_here("bench", "matrix", "paper/detox", "--out", tmp_path / "run")
    assert ran.returncode == 2 and "$OTTER_MODELS is not set" in ran.stderr
