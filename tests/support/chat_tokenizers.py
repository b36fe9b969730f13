"""Tokenizers with chat templates of every kind, and tables of dialogues."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from otter_cli.data.tables import Record

_TURNS = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
_GENERATE = "{% if add_generation_prompt %}a:{% endif %}"

# Where BOS stands, and what ends a turn.
TEMPLATES = {
    "BOS": "{{ bos_token }}" + _TURNS + "{{ eos_token }}{% endfor %}" + _GENERATE,
    "no BOS": _TURNS + "{{ eos_token }}{% endfor %}" + _GENERATE,
    "BOS twice": "{{ bos_token * 2 }}" + _TURNS + "{{ eos_token }}{% endfor %}" + _GENERATE,
    "BOS at every turn": _TURNS.replace("{{ m.role", "{{ bos_token }}{{ m.role", 1)
    + "{{ eos_token }}\n{% endfor %}"
    + "{% if add_generation_prompt %}{{ bos_token }}a:{% endif %}",
    "no end of turns": "{{ bos_token }}" + _TURNS + ";{% endfor %}" + _GENERATE,
}


def chat_tokenizer(tokenizer: Any, template: str, *, adds_bos: bool = True) -> Any:
    """A copy with the template; with `adds_bos` false it puts no token around plain texts."""
    if adds_bos:
        made = deepcopy(tokenizer)
    else:
        described = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
        made = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(described)),
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
        )
    made.chat_template = template
    return made


class Listed:
    """A table of given rows."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = rows

    def __str__(self) -> str:
        return "table"

    def records(self) -> Iterator[Record]:
        for number, row in enumerate(self.rows, 1):
            yield Record(self, number, row, "row")


def said(*turns: str) -> list[dict[str, Any]]:
    """A dialogue of a user, who begins, and the assistant."""
    roles = ["user", "assistant"] * len(turns)
    return [{"role": r, "content": turn} for r, turn in zip(roles, turns, strict=False)]
