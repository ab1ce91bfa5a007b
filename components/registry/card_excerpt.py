"""A model card in the space that MLflow has for a version's description."""


def excerpt_card(card: str, max_chars: int) -> str:
    """Return `card`, or as many of its sections as fit into `max_chars`, and where the full card is.

    A section that does not fit is left out, and those after it are kept if there is room.
    """
    if len(card) <= max_chars:
        return card
    note = "_Shortened: the whole card is `README.md` among the files of this version._\n"
    first, *sections = card.rstrip("\n").split("\n\n##")
    kept = first[: max_chars - len(note) - 2]
    for section in sections:
        if len(kept) + len(section) + 4 + 2 + len(note) <= max_chars:
            kept += f"\n\n##{section}"
    return f"{kept}\n\n{note}"
