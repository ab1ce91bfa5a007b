"""Numbers with their nouns."""

from components.reports.plural import plural


def test_one_is_singular() -> None:
    assert [plural(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [plural(count, "process", "processes") for count in (1, 2)] == ["1 process", "2 processes"]
