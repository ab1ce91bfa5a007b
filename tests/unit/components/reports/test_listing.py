"""Names and steps in a sentence: a list of any length fits on a line."""

from components.reports.listing import list_some, list_steps


def test_a_long_list_says_how_many_more_there_are() -> None:
    assert list_some(["a", "b"]) == "a, b"
    assert list_some([]) == ""
    assert list_some("abcde", most=2) == "a, b and 3 more"
    assert list_some(range(3), most=1, separator="; ") == "0 and 2 more"
    assert list_some(range(5), most=3, separator="; ") == "0; 1; 2 and 2 more"


def test_of_many_steps_the_first_and_the_last_are_named() -> None:
    assert list_steps([30, 10, 20, 10]) == "10, 20, 30"
    assert list_steps([]) == "none"
    assert list_steps(range(1, 21)) == ", ".join(map(str, range(1, 21)))
    assert list_steps(range(10, 10_001, 10)) == "10, 20, 30, 40, 50, ..., 9960, 9970, 9980, 9990, 10000 (1000 steps)"
