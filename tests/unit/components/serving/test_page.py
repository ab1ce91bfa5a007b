"""The page of a served version: its queries are checked as requests are, and nothing of a query is on it unescaped."""

import json

import pytest

from components.serving.page import form_page, image_request
from components.serving.request import Refused

PARAMETERS = ("num_steps", "sampler")
SCRIPT = "\"'><script>alert(1)</script>"


@pytest.mark.parametrize(
    ("query", "seed", "params"),
    [
        ([], 0, {}),
        ([("seed", "7")], 7, {}),
        ([("num_steps", "20"), ("sampler", "heun"), ("seed", "9223372036854775807")], 2**63 - 1, {"num_steps": 20, "sampler": "heun"}),
    ],
)
def test_a_query_becomes_the_request_of_one_image(query: list[tuple[str, str]], seed: int, params: dict[str, object]) -> None:
    assert json.loads(image_request(query, parameters=PARAMETERS)) == {"dataframe_records": [{"seed": seed}], "params": params}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ([("seed", "1"), ("seed", "2")], "a parameter is given twice"),
        ([("sed", "1")], "'sed' is unknown: an image has seed, num_steps, sampler"),
        ([("x" * 1000, "1")], "is unknown"),
        *(([("seed", text)], "seed .* is not a whole number") for text in ("", "-1", "+1", "1.0", "1e3", " 1", "²", "٣", "0x1", "1" * 20)),
        ([("num_steps", "many")], "num_steps 'many' is not a whole number"),
    ],
)
def test_a_wrong_query_is_refused_with_one_short_line(query: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        image_request(query, parameters=PARAMETERS)
    assert refused.value.status == 400
    assert len(refused.value.reason) <= 300
    assert "\n" not in refused.value.reason


def page_of(query: dict[str, str], *, is_student: bool = False, base_url: str = "http://host/", problem: str | None = None) -> str:
    return form_page(query, default_steps=25, is_student=is_student, base_url=base_url, problem=problem)


def test_nothing_of_a_query_is_on_the_page_unescaped() -> None:
    hostile = {"seed": SCRIPT, "num_steps": SCRIPT, "sampler": SCRIPT}
    for problem in (None, f"seed {SCRIPT} is not a whole number"):
        for is_student in (False, True):
            page = page_of(hostile, is_student=is_student, base_url=f"http://host/{SCRIPT}/", problem=problem)
            assert (page.count("<script>"), page.count("alert(1)</script>")) == (1, 0), "the page has one script, its own"
    assert page_of({}, problem=SCRIPT).count("<img") == 0


@pytest.mark.parametrize("is_student", [False, True])
def test_a_student_is_offered_no_steps_and_says_how_many_it_has(is_student: bool) -> None:
    page = page_of({"seed": "7"}, is_student=is_student)
    assert ('name="num_steps"' in page) != is_student
    assert ("it draws an image in 25 steps" in page) == is_student
    assert f'src="image.png?seed=7{"" if is_student else "&amp;num_steps=25"}"' in page


@pytest.mark.parametrize("is_student", [False, True])
def test_the_image_is_that_of_every_parameter_in_the_address(is_student: bool) -> None:
    page = page_of({"seed": "7", "num_steps": "3", "sampler": "heun"}, is_student=is_student)
    assert 'src="image.png?seed=7&amp;num_steps=3&amp;sampler=heun"' in page


def test_the_form_keeps_every_parameter_of_the_address() -> None:
    assert '<input name="sampler" value="heun">' in page_of({"sampler": "heun"})
    assert 'name="sampler"' not in page_of({"sampler": "heun"}, is_student=True), "a student has its own"
    assert 'name="sed"' not in page_of({"sed": "1"}, problem="'sed' is unknown"), "the next drawing would be refused again"
