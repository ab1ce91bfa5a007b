"""Requests to a served version that are refused before they cost anything, each with one line."""

import json
from typing import Any

import pytest

from components.serving.request import MAX_ROWS, Refused, check_body

KNOWN = {"parameters": ["num_steps", "sampler"], "columns": ["seed"]}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "request_body",
    [
        body(dataframe_records=[{"seed": 0}]),
        body(dataframe_records=[{"seed": seed} for seed in range(MAX_ROWS)], params={"num_steps": 1000, "sampler": "heun"}),
        body(dataframe_split={"columns": ["seed"], "index": [0], "data": [[1]]}, params=None),
        body(instances=[{"seed": 3}]),
        body(inputs={"seed": [1, 2]}),
        body(inputs={"seed": 1}),
    ],
)
def test_what_mlflow_documents_passes(request_body: bytes) -> None:
    check_body(request_body, **KNOWN)


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"instances": [{"seed": ' + b"1" * 5000 + b"}]}", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "has 0 of dataframe_records"),
        (body(instances=[1], inputs={"seed": [1]}), "has 2 of"),
        (body(instances=[{"seed": 1}], parameters={}), "'parameters' is unknown"),
        (body(instances=[{"seed": 1}], **{"x" * 5000: 1}), "is unknown"),
        (body(dataframe_records=[]), "0 seeds in one request"),
        (body(dataframe_records=[{"seed": 0}] * (MAX_ROWS + 1)), "65 seeds in one request, allowed are 1 to 64"),
        (body(dataframe_split={"columns": ["seed"], "data": [[0]] * 65}), "65 seeds"),
        (body(dataframe_split={"columns": ["seed"], "data": [[0, 1]]}), "a row of 2 cells"),
        (body(instances=[[0, 1]]), "a row of 2 cells"),
        (body(inputs={"seed": list(range(65))}), "65 seeds"),
        (body(inputs={"seed": [0], "width": [512]}), "unknown column 'width'"),
        (body(instances=[{"seed": 0, "width": 512}]), "unknown column 'width': this model takes seed"),
        (body(dataframe_records={"seed": [0]}), "not a table of rows"),
        (body(dataframe_split=[[0]]), "not a table of rows"),
        (body(instances="0"), "not a table of rows"),
        (body(instances=[{"seed": 0}], params=[1]), "params must be a JSON object"),
        (body(instances=[{"seed": 0}], params={"stepps": 3}), "params.stepps is unknown: this model takes num_steps, sampler"),
        *(
            (body(instances=[{"seed": 0}], params={"num_steps": steps}), f"num_steps {steps} must lie between 1 and 1000")
            for steps in (0, 1001, 10**12, -1)
        ),
        *(
            (body(instances=[{"seed": 0}], params={"num_steps": steps}), f"num_steps {steps} is not a whole number between 1 and 1000")
            for steps in (1.5, 20.0, True, None, "many", "20", [20])
        ),
    ],
)
def test_anything_else_is_refused_with_one_line(request_body: bytes, message: str) -> None:
    with pytest.raises(Refused) as refused:
        check_body(request_body, **KNOWN)
    assert refused.value.status == 400
    assert message in refused.value.reason
    assert "\n" not in refused.value.reason
    assert len(refused.value.reason) <= 300
