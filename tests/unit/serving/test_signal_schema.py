"""The schema of signals in requests and answers, which every engine shares."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from otter_cli.serving.signal_schema import (
    SCHEMA_VERSION,
    RequestRefused,
    choice_fields,
    describe_signals,
    error_body,
    refusal_body,
    schema_document,
    signal_series,
    split_body,
)
from otter_cli.signals.config import parse_signal

KNOWN = {
    signal.name: signal
    for signal in map(
        parse_signal, ("reward", "toxicity", "tone=classes:rude,kind", "value=vocabulary", "future")
    )
}
DOCUMENT = Path(__file__).parents[3] / "docs/signals.schema.json"


def valid(value: Any, definition: str) -> bool:
    document = json.loads(DOCUMENT.read_text())
    schema = {"$ref": f"#/$defs/{definition}", "$defs": document["$defs"]}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_the_committed_document_is_that_of_the_code() -> None:
    assert json.loads(DOCUMENT.read_text()) == schema_document(), (
        "write it again by otter_cli.serving.signal_schema.write_schema; where clients would "
        "misread answers, raise SCHEMA_VERSION"
    )
    assert schema_document()["version"] == SCHEMA_VERSION
    jsonschema.Draft202012Validator.check_schema(schema_document())


def test_the_extension_is_taken_out_of_a_body() -> None:
    body = {
        "model": "m",
        "messages": [],
        "signals": ["toxicity", "reward", "toxicity"],
        "guide": {"reward": 2, "tone.rude": -1.5},
        "stop_when": "toxicity >= 0.9",
    }
    extension, rest = split_body(body)
    assert rest == {"model": "m", "messages": []}
    assert extension.signals == ("toxicity", "reward")
    assert extension.guide == {"reward": 2.0, "tone/rude": -1.5}
    assert [str(bound) for bound in extension.bounds] == ["toxicity>=0.9"]
    assert not extension.empty
    extension.check(KNOWN)
    assert valid(body, "RequestExtension")


@pytest.mark.parametrize(
    "body", [{}, {"signals": None, "guide": None, "stop_when": None}, {"guide": {"reward": 0}}]
)
def test_a_request_that_asks_for_nothing_is_empty(body: dict[str, Any]) -> None:
    assert split_body(body)[0].empty


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"signals": ["toxicty"]}, "signals", "did you mean 'toxicity'? its signals: reward, tox"),
        ({"signals": ["future"]}, "signals", "no signal 'future'"),
        ({"signals": 3}, "signals", "signals: "),
        ({"signals": [3]}, "signals", "signals.0: "),
        ({"guide": {"rewrd": 1}}, "guide", "did you mean 'reward'?"),
        ({"guide": {"tone/rud": 1}}, "guide", "did you mean 'rude'?"),
        ({"guide": {"reward": math.nan}}, "guide", "guide.reward: "),
        ({"guide": {"reward": "much"}}, "guide", "guide.reward: "),
        ({"guide": ["reward"]}, "guide", "guide: "),
        ({"guide_candidates": -1}, "guide_candidates", "guide_candidates: "),
        ({"stop_when": "toxicity"}, "stop_when", "'toxicity' is no bound"),
        ({"stop_when": "toxicty>0.9"}, "stop_when", "did you mean 'toxicity'?"),
        ({"stop_when": "tone.rud>0.9"}, "stop_when", "its labels: rude, kind"),
        ({"stop_when": ["reward<0", "value>1"]}, "stop_when", "scores tokens that could come"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name(
    body: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        split_body(body)[0].check(KNOWN)
    answer = refusal_body(refused.value)["error"]
    assert refused.value.status == 400 and answer["param"] == param
    assert answer["type"] == "invalid_request_error"
    assert message in answer["message"]


def test_a_choice_has_one_entry_for_each_signal() -> None:
    values = {"reward": [0.5, math.nan, -2], "tone": [[0.1, 0.9], [math.inf, 0.2], [0.5, 0.5]]}
    fields = choice_fields(values, KNOWN, stop_reason="reward<-1")
    assert fields == {
        "signals": {
            "reward": {"tokens": [0.5, None, -2.0], "last": -2.0},
            "tone": {
                "tokens": [[0.1, 0.9], [None, 0.2], [0.5, 0.5]],
                "last": [0.5, 0.5],
                "labels": ["rude", "kind"],
            },
        },
        "stop_reason": "reward<-1",
    }
    assert valid(fields, "ChoiceExtension")
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert signal_series([]) == {"tokens": [], "last": None}
    assert choice_fields({}, KNOWN) == {}


def test_the_document_refuses_what_an_answer_never_has() -> None:
    assert not valid({"signals": {"reward": [1.0]}}, "ChoiceExtension")
    assert not valid({"signals": {"reward": {"tokens": ["1"], "last": 1}}}, "ChoiceExtension")
    assert not valid({"guide": {"reward": "2"}}, "RequestExtension")


def test_models_say_which_signals_they_have() -> None:
    described = describe_signals(KNOWN.values())
    assert described["signals_schema"] == SCHEMA_VERSION
    assert [signal["name"] for signal in described["signals"]] == [
        "reward", "toxicity", "tone", "value",
    ]  # fmt: skip
    assert all(valid(signal, "SignalDescription") for signal in described["signals"])


def test_an_error_has_the_form_that_clients_read() -> None:
    assert error_body("no", kind="overloaded_error") == {
        "error": {"message": "no", "type": "overloaded_error", "param": None, "code": None}
    }
