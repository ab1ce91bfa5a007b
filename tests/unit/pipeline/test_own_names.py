"""A person's own images have a dataset and a model of their own name, not those of the demo."""

import pytest

from pipeline.commands.run import _own_names
from pipeline.config import load_config


@pytest.mark.parametrize(
    ("source", "overrides", "names"),
    [
        ("/data/My Photos.zip", (), ("own-my-photos", "celebdit-own-my-photos")),
        ("s3://bucket/cats.tar.gz", (), ("own-cats", "celebdit-own-cats")),
        ("faces/", (), ("own-faces", "celebdit-own-faces")),
        ("/data/...", (), ("demo-own", "celebdit-demo-own")),
        (f"/data/{'x' * 200}.zip", (), (f"own-{'x' * 50}", f"celebdit-own-{'x' * 50}")),
        ("/data/cats.zip", ("data.name=lions",), ("lions", "celebdit-lions")),
        ("/data/cats.zip", ("registry.model_name=tigers",), ("own-cats", "tigers")),
    ],
)
def test_names_follow_the_source_unless_they_are_given(source: str, overrides: tuple[str, ...], names: tuple[str, str]) -> None:
    config = load_config("demo", overrides, changes={"data.source": source, **_own_names(source, overrides)})
    assert (config.data.name, config.registry.model_name) == names
