"""The Python interface: `load` a graft, then `generate`, `score`, or call it as in transformers.

from otter_cli import load

model = load("grafted")
answer = model.generate([{"role": "user", "content": "Hello"}], guide={"reward": 2.0})
print(answer.text, answer.signals["reward"])
"""

from otter_cli.api.generated_text import GeneratedText, ScoredText
from otter_cli.api.model import Otter, load

__all__ = ["GeneratedText", "Otter", "ScoredText", "load"]
