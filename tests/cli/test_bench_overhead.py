"""`otter bench overhead` as a user types it: a smoke run, and no figure of it is asserted."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Otter
from tests.support.grafts import graft_for

SMALL = ["--repeats", 6, "--context", 16]


def test_a_shape_needs_no_folder_and_every_row_has_its_bound(
    otter_here: Otter, tmp_path: Path
) -> None:
    done = otter_here(
        "bench", "overhead", "--shape", "tiny", *SMALL, "--out", tmp_path / "run", "--json"
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    first = data["rows"][0]
    assert first["name"] == "default" and 0 < first["parameter_ratio"] < 1
    for ratio in ("decode_ratio", "prefill_ratio"):
        assert set(first[ratio]) == {"mean", "low", "high", "n"}
    for kind in ("decode", "prefill"):
        assert first["bound"][kind]["ratio"] > 1
    # Six steps are read at once, and the bound counts the insertion's weights once for all of them.
    later = first["read_later"]
    assert later["every"] == 6 and later["ratio"]["n"] == 1
    assert 1 < later["bound"] < first["bound"]["decode"]["ratio"]
    assert first["logits_equal"] == first["logits_compared"] > 0
    assert first["cache_bytes_per_token"]["graft"] > first["cache_bytes_per_token"]["base"]
    assert data["provenance"]["hardware"] and data["rates"]["bytes_per_second"] > 0
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"result.json", "report.html"}


def test_a_grafted_folder_is_measured_as_it_lies(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = graft_for(tiny_llama, tmp_path / "graft", signals=("reward",), kv="base")
    done = otter_here("bench", "overhead", folder, *SMALL, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    row = json.loads((tmp_path / "run" / "result.json").read_text())["rows"][0]
    assert row["file_bytes"] == (folder / "otter.safetensors").stat().st_size
    assert row["cache_bytes_per_token"]["graft"] == row["cache_bytes_per_token"]["base"]


def test_without_repeats_the_report_says_what_decides(otter_here: Otter, tmp_path: Path) -> None:
    done = otter_here(
        "bench", "overhead", "--shape", "tiny", "--context", 16, "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    assert "as many rounds as fit 3 min 00 s, at most 100" in " ".join(done.stdout.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["settings"]["seconds"] == 180 and result["rows"][0]["decode_ratio"]["n"] == 100


def test_ctrl_c_keeps_what_was_measured(
    otter_here: Otter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_cli.benchmarks.overhead import run_overhead

    def interrupted_peers(run: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return peers(run)

    peers = run_overhead.GROUPS["peers"]
    monkeypatch.setitem(run_overhead.GROUPS, "peers", interrupted_peers)
    done = otter_here(
        "bench", "overhead", "--shape", "tiny", *SMALL, "--peers", "--profile",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 130
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["rows"][0]["decode_ratio"]["n"] == 6 and not result["groups"]
    assert result["left_out"] == ["the rest of peers", "profile"]
    assert "without the rest of peers, profile" in " ".join(done.stderr.split())
    assert "Interrupted" in done.stdout and (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_every_group_has_its_lines_and_the_page_fits(otter_here: Otter, tmp_path: Path) -> None:
    done = otter_here(
        "bench", "overhead", "--shape", "tiny", *SMALL, "--all", "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    groups = {group["title"]: group for group in result["groups"]}
    assert groups.keys() >= {
        "Peers", "Decoding, batch 1", "Decoding, batch 8", "Speculative", "Training", "Surgery",
        "Start-up", "Profile of a decoding step", "Guided, batch 1", "Guided, batch 16",
        "Rows: candidates of one next token", "Rows: positions of one text, a draft",
    }  # fmt: skip
    for group in groups.values():
        if group["title"].startswith("Profile"):
            names = {line["name"] for line in group["lines"]}
            assert "otter::stream_layers" in names or {"aten::bmm", "aten::addmm_"} <= names
            continue
        reference = next(line for line in group["lines"] if line["name"] == group["reference"])
        assert reference["ratio"]["mean"] == 1 and len(group["lines"]) > 2
        assert all(line["milliseconds"] > 0 for line in group["lines"])
    short = [line["name"] for line in groups["Guided, batch 16"]["lines"]]
    assert short[0] == "plain" and short[2:] == ["Q-style k = 10", "V-style k = 10", "ARGS k = 10"]
    passes = {line["name"]: line["figures"] for line in groups["Decoding, batch 1"]["lines"]}
    assert passes["plain"]["other passes a token"] == 0
    assert passes["ARGS k = 10"]["other passes a token"] > 1
    assert passes["DExperts"]["other passes a token"] == 2
    assert passes["Q-style k = 10"]["base passes a token"] == 1
    assert passes["best of 8 by a reward model"]["other passes a token"] == 1 / 16
    decoding = groups["Decoding, batch 8"]["lines"]
    assert all((line["floor"] is None) == (line["name"] == "plain") for line in decoding)
    assert {row["name"].partition(",")[0] for row in result["rows"]} >= {"FFN", "attention"}
    assert all(row["logits_equal"] == row["logits_compared"] for row in result["rows"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a grafted folder or a shape"),
        (["--shape", "lama-7b"], "did you mean 'llama-7b'"),
        (["--shape", "tiny", "--dtype", "float31"], "float31"),
        (["--shape", "tiny", "--context", "600"], "window of 512"),
        (["--shape", "tiny", "--repeats", "0"], "--repeats 0"),
        (["somewhere", "--hidden", "8"], "sizes belong to --shape"),
        (["somewhere"], "somewhere"),
    ],
)
def test_what_cannot_be_measured_is_said(
    otter_here: Otter, arguments: list[str], words: str
) -> None:
    done = otter_here("bench", "overhead", *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
