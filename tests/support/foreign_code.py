"""Folders whose code leaves a file behind when it is run."""

import json
from pathlib import Path

# As transformers names it, and as it is fetched from a folder.
_AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


def plant(folder: Path, canary: Path, where: str) -> Path:
    """Puts code that writes `canary` into a model's folder, and names it where transformers looks:
    `model` in config.json, `tokenizer` in tokenizer_config.json."""
    code = f"open({str(canary)!r}, 'w').close()\n"
    for file in ("evil.py", "custom_generate/generate.py", "modeling_otter_wide.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(code)
    if where == "model":
        auto_map = {"AutoConfig": "evil.Evil", **dict.fromkeys(_AUTO_MODELS, "evil.Evil")}
        _edit(folder / "config.json", auto_map=auto_map)
    else:
        # A class that transformers does not have, so that only the folder's is left.
        auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        _edit(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")
    return folder


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
