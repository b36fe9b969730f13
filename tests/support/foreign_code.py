"""Model folders whose code creates a file when it is run."""

import json
from pathlib import Path

# The name that transformers gives a module which it fetches from a folder.
_AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


def plant(folder: Path, canary: Path, where: str) -> Path:
    """Puts code that writes `canary` into a model's folder, and names it in config.json (`model`)
    or in tokenizer_config.json (`tokenizer`)."""
    code = f"open({str(canary)!r}, 'w').close()\n"
    for file in ("evil.py", "custom_generate/generate.py", "modeling_otter_wide.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(code)
    if where == "model":
        auto_map = {"AutoConfig": "evil.Evil", **dict.fromkeys(_AUTO_MODELS, "evil.Evil")}
        _edit(folder / "config.json", auto_map=auto_map)
    else:
        # transformers has no class of this name, so only the folder's remains.
        auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        _edit(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")
    return folder


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
