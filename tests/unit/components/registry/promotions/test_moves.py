"""The promotion log: aliases, order and reasons."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import BadInput
from components.registry.promotions.moves import (
    MAX_TEXT_CHARS,
    START_ID,
    Move,
    Standing,
    VersionIdentity,
    clean_name,
    new_id,
    order,
    standing_after,
    utc,
    validate_reason,
)


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


def identities(*versions: str) -> dict[str, VersionIdentity]:
    return {version: VersionIdentity("c" * 64) for version in versions}


def test_a_champion_that_was_deleted_has_no_successor_and_a_previous_one_gives_way_to_the_one_before() -> None:
    moves = [move(n, "promote", version) for n, version in enumerate(["1", "2", "3", "2"])]
    assert standing_after(moves, identities("1", "2", "3")) == Standing("2", "3")
    assert standing_after(moves, identities("1", "3")) == Standing(None, "3")
    assert standing_after(moves, identities("1", "2")) == Standing("2", "1")
    assert standing_after(moves, identities("2")) == Standing("2", None)
    assert standing_after(moves, {}) == Standing(None, None)


def test_a_number_that_another_checkpoint_has_now_is_no_champion() -> None:
    moves = [replace(move(n, "promote", version), checkpoint="c" * 64) for n, version in enumerate(["1", "2"])]
    assert standing_after(moves, identities("1", "2")) == Standing("2", "1")
    assert standing_after(moves, {**identities("1"), "2": VersionIdentity("d" * 64)}) == Standing(None, "1")
    assert standing_after(moves, {**identities("2"), "1": VersionIdentity("d" * 64)}) == Standing("2", None)
    bare = [replace(move(0, "promote", "1"), version_created_ms=5)]
    assert standing_after(bare, {"1": VersionIdentity(None, 5)}) == Standing("1", None)
    assert standing_after(bare, {"1": VersionIdentity(None, 6)}) == Standing(None, None), "without a checkpoint its creation tells it apart"


def test_a_rollback_takes_back_all_that_it_skips() -> None:
    promotions = [move(n, "promote", version) for n, version in enumerate(["1", "2", "3"])]
    back = replace(move(3, "rollback", "3"), to_version="1")
    assert standing_after([*promotions, back], identities("1", "3")) == Standing("1", None)
    assert standing_after([*promotions, replace(back, to_version="9")]) == Standing("2", "1"), "what it names was never champion"


def test_an_entry_of_an_earlier_release_decides_nothing() -> None:
    old = replace(move(5, "promote", "9"), run_id="r" * 32)
    start = replace(move(1, "start", "1"), id=START_ID)
    assert standing_after([old, start]) == Standing("1", None)
    assert order([start, old]) == [old, start]


def new_move(now_s: float, moves: list[Move], **changes: Any) -> Move:
    return Move(new_id(moves, now_s), "promote", "1", "r", "b", utc(now_s), **changes)


def test_a_move_comes_after_all_that_were_seen_whatever_the_clock_says() -> None:
    first = new_move(2_000_000.0, [])
    behind = replace(new_move(1_000_000.0, [first]), version="2")
    assert standing_after([behind, first]) == Standing("2", "1")
    assert Move.parse(behind.id, behind.text()) == behind


def test_an_id_after_which_there_is_none_is_refused_with_its_tag() -> None:
    last_but_one, last = (replace(move(1, "promote", "1"), id=f"{number:015d}-ffffffff") for number in (10**15 - 2, 10**15 - 1))
    assert new_id([last_but_one], 5.0).startswith("999999999999999-")
    with pytest.raises(BadInput, match="after which there can be none") as refused:
        new_id([last, last_but_one], 5.0)
    assert refused.value.hint is not None
    assert f"delete the tag celebdit.move.{last.id} of" in refused.value.hint


def test_an_entry_belongs_to_the_model_that_it_names() -> None:
    new = new_move(50.0, [], checkpoint="c" * 64, model_created_ms=60_000)
    assert Move.parse(new.id, new.text()) == new
    assert new.is_of_model(60_000), "whatever the clock of the person says"
    assert not new.is_of_model(10_000)
    old = new_move(50.0, [])
    assert old.is_of_model(50_000)
    assert not old.is_of_model(50_001), "it is older than the model"


@pytest.mark.parametrize("character", ["\u20ac", '"', "\\", "\U0001f600", "x"])
def test_the_longest_entry_fits_into_mlflows_column_in_any_script(character: str) -> None:
    reason, by = validate_reason(character * 1000, "promotion"), clean_name(character * 1000)
    facts = {"version": "9" * 18, "from_version": "9" * 18, "to_version": "9" * 18, "after": "0" * 24, "run_id": "r" * 32}
    entry = replace(new_move(1.0, [], forced=True, checkpoint="c" * 64, model_created_ms=10**15), **facts, version_created_ms=10**15)
    text = replace(entry, reason=reason, by=by, agreed=False).text()
    assert len(text) <= MAX_TEXT_CHARS
    assert Move.parse(entry.id, text) == replace(entry, reason=reason, by=by, agreed=False)


def test_an_entry_of_a_later_release_is_refused() -> None:
    entry = new_move(1.0, [])
    with pytest.raises(BadInput, match="format 3") as refused:
        Move.parse(entry.id, entry.text().replace('"format": 2', '"format": 3'))
    assert refused.value.hint == f"use the newer release; if none wrote it, delete the tag celebdit.move.{entry.id} of the model"


@pytest.mark.parametrize("reason", ["a\x00b", "a\x1b[31m", "\udc80"])
def test_a_reason_that_databases_refuse_is_refused_first(reason: str) -> None:
    with pytest.raises(BadInput, match="control characters"):
        validate_reason(reason, "promotion")


@pytest.mark.parametrize(("reason", "message"), [("", "needs a reason"), (" \n ", "needs a reason"), ("x" * 1001, "1001 characters")])
def test_a_move_without_a_usable_reason_is_refused(reason: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        validate_reason(reason, "promotion")


@given(st.permutations([move(n, "promote", str(n % 5)) for n in range(8)]))
def test_the_order_in_which_the_log_is_read_does_not_matter(moves: list[Move]) -> None:
    assert standing_after(moves) == standing_after(sorted(moves, key=lambda m: m.id))


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", "nonsense", '{"action": "promote"}', "[" * 5000, '{"a": 1}', "9" * 5000])
def test_an_entry_of_another_program_is_no_move(text: str) -> None:
    entry = new_move(2_000_000.0, [])
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
