"""What `celebdit models` prints of a version's metrics and of its card."""

import pytest

from pipeline.commands import models


def test_a_score_has_half_of_its_interval_as_everywhere() -> None:
    metrics = {"eval/fd_randconv_1k": 0.3039, "eval/fd_randconv_1k_std": 0.021, "eval/fd_randconv_1k_of_noise": 17.2, "eval/mind": 1.0}
    assert models._headline(metrics) == "eval/fd_randconv_1k 0.304 ± 0.041"
    assert models._headline({"eval/fid_50k": 4.25}) == "eval/fid_50k 4.25"


CARD = """**eval/fid_50k 4.25**. Gate: **pass** (no bounds).

![samples](get-artifact?path=grid.png&run_uuid=0)

## How to use it

```sh
celebdit sample models:/faces@champion --count 16 --out faces.png
```
"""


def test_a_card_is_printed_as_text_with_commands_that_work_for_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    models._print_card(models._own_commands(CARD, "faces", "3", ["challenger"]))
    text = capsys.readouterr().err
    assert "eval/fid_50k 4.25. Gate: pass (no bounds)." in text
    assert all(line == line.rstrip() for line in text.splitlines()), "no blanks at the ends"
    assert "celebdit sample models:/faces/3 --count 16" in text
    assert not any(mark in text for mark in ("**", "##", "```", "@champion", "get-artifact"))
    models._print_card(models._own_commands(CARD + "\x1b[2J", "faces", "3", ["champion"]))
    text = capsys.readouterr().err
    assert "models:/faces@champion" in text
    assert "\x1b" not in text
