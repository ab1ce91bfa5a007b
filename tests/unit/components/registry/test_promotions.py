"""The promotion log: aliases, order and reasons."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import BadInput
from components.registry.promotions import Move, Standing, next_move, standing_after, validate_reason


def move(number: int, action: str, version: str) -> Move:
    return Move(id=f"{number:04d}", action=action, version=version, reason="r", by="b", at="t")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("moves", "standing"),
    [
        ([], Standing(None, None)),
        ([("promote", "1")], Standing("1", None)),
        ([("promote", "1"), ("promote", "2")], Standing("2", "1")),
        ([("promote", "1"), ("promote", "2"), ("rollback", "2")], Standing("1", None)),
        ([("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "3")], Standing("2", "1")),
        ([("promote", "1"), ("promote", "1")], Standing("1", None)),
        ([("promote", "1"), ("promote", "2"), ("promote", "2"), ("rollback", "2")], Standing("1", None)),
        ([("rollback", "1")], Standing(None, None)),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1")], Standing("2", "1")),
    ],
)
def test_the_aliases_follow_from_the_log(moves: list[tuple[str, str]], standing: Standing) -> None:
    assert standing_after([move(n, action, version) for n, (action, version) in enumerate(moves)]) == standing


def test_a_deleted_version_is_never_champion_again() -> None:
    moves = [move(n, "promote", version) for n, version in enumerate(["1", "2", "3", "2"])]
    assert standing_after(moves, {"1", "2", "3"}) == Standing("2", "3")
    assert standing_after(moves, {"1", "3"}) == Standing("3", "1")
    assert standing_after(moves, {"2"}) == Standing("2", None)
    assert standing_after(moves, set()) == Standing(None, None)


def test_a_move_comes_after_all_that_were_seen_whatever_the_clock_says() -> None:
    first = next_move([], "promote", "1", reason="r", by="b", forced=False, now_s=2_000_000.0)
    behind = next_move([first], "promote", "2", reason="r", by="b", forced=False, now_s=1_000_000.0)
    assert standing_after([behind, first]) == Standing("2", "1")
    assert Move.parse(behind.id, behind.text()) == behind


def test_an_entry_belongs_to_the_model_and_the_checkpoint_that_it_names() -> None:
    new = next_move([], "promote", "1", reason="r", by="b", forced=False, now_s=50.0, checkpoint="c" * 64, model_created_ms=60_000)
    assert Move.parse(new.id, new.text()) == new
    assert new.is_of_model(60_000), "whatever the clock of the person says"
    assert not new.is_of_model(10_000)
    assert new.is_of_version("c" * 64)
    assert not new.is_of_version("d" * 64)
    old = next_move([], "promote", "1", reason="r", by="b", forced=False, now_s=50.0)
    assert old.is_of_model(50_000)
    assert not old.is_of_model(50_001), "it is older than the model"
    assert old.is_of_version("c" * 64)


def test_the_longest_reason_fits_into_mlflows_column_in_any_script() -> None:
    move = next_move([], "promote", "1", reason="\u20ac" * 1000, by="b", forced=True, now_s=1.0, checkpoint="c" * 64, model_created_ms=1)
    assert len(move.text()) < 6000


@pytest.mark.parametrize(("reason", "message"), [("", "needs a reason"), (" \n ", "needs a reason"), ("x" * 1001, "1001 characters")])
def test_a_move_without_a_usable_reason_is_refused(reason: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        validate_reason(reason, "promotion")


@given(st.permutations([move(n, "promote", str(n % 5)) for n in range(8)]))
def test_the_order_in_which_the_log_is_read_does_not_matter(moves: list[Move]) -> None:
    assert standing_after(moves) == standing_after(sorted(moves, key=lambda m: m.id))


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", "nonsense", '{"action": "promote"}', "[" * 5000, '{"a": 1}', "9" * 5000])
def test_an_entry_of_another_program_is_no_move(text: str) -> None:
    entry = next_move([], "promote", "1", reason="r", by="b", forced=False, now_s=2_000_000.0)
    assert Move.parse(entry.id, text) is None
    assert Move.parse("lr", entry.text()) is None
    assert Move.parse(entry.id, entry.text().replace('"promote"', '"remove"')) is None
    assert Move.parse(entry.id, entry.text().replace('"1"', "1")) is None
    assert Move.parse(entry.id, entry.text().replace("false", '"no"')) is None
    assert Move.parse(entry.id, entry.text().replace("{", '{"model_created_ms": "soon", ', 1)) is None
    assert Move.parse(entry.id, entry.text()) == entry


@given(
    st.text(max_size=60)
    | st.dictionaries(st.sampled_from(["action", "version", "by", "id", "forced"]), st.integers() | st.text()).map(json.dumps)
)
def test_any_entry_is_a_move_or_none(text: str) -> None:
    assert Move.parse("000000000001000-0123abcd", text) is None
