"""The wide layout brings its own code: only otter's own, byte for byte, is ever run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from otter_cli.core.errors import OtterError
from otter_cli.model.wide import MODELLING_FILE, load_wide
from otter_cli.serving.wide.export import write_wide
from tests.support.grafts import random_graft


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_wide(random_graft(tiny_llama, folder / "graft", hidden=8, heads=2), folder / "wide")
    return folder / "wide"


@pytest.fixture
def wide(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "wide"))


def _edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_code_that_is_not_ours_is_not_run(wide: Path, tmp_path: Path) -> None:
    load_wide(wide)
    with open(wide / MODELLING_FILE, "a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(OtterError, match=MODELLING_FILE):
        load_wide(wide)
    assert not (tmp_path / "ran").exists()


def test_code_from_elsewhere_is_not_fetched(wide: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "someone/repository--modeling_otter_wide.OtterWide"}
    _edit(wide, lambda config: config["auto_map"].update(auto_map))  # type: ignore[attr-defined]
    with pytest.raises(OtterError, match="someone/repository"):
        load_wide(wide)


@pytest.mark.parametrize("model_type", ["llama", "otter_wide_bert", "otter_wide_", None])
def test_other_checkpoints_are_not_taken_for_wide(wide: Path, model_type: str | None) -> None:
    _edit(wide, lambda config: config.update(model_type=model_type))
    with pytest.raises(OtterError, match="no wide export"):
        load_wide(wide)


def test_another_familys_file_is_not_ours_here(wide: Path) -> None:
    _edit(wide, lambda config: config.update(model_type="otter_wide_mistral"))
    with pytest.raises(OtterError, match=MODELLING_FILE):
        load_wide(wide)


def test_a_missing_tensor_is_refused(wide: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(wide / "model.safetensors")
    del tensors["otter_signals.reward.base"]
    save_file(tensors, wide / "model.safetensors", {"format": "pt"})
    with pytest.raises(OtterError, match=r"otter_signals\.reward\.base"):
        load_wide(wide)


def test_transformers_alone_loads_it(wide: Path) -> None:
    """In a process that cannot import otter."""
    script = (
        "import sys; sys.modules['otter_cli'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(wide)!r}, trust_remote_code=True)\n"
        "print(model(torch.arange(3, 9)[None]).signals['reward'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    with torch.no_grad():
        here = load_wide(wide)(torch.arange(3, 9)[None]).signals["reward"]
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), here)
