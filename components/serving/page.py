"""What a person sees of a served version in a browser: a form for seed and steps, and the image that they give.

Promises: pure functions; nothing of a request is on the page unescaped. `image_request` makes the request that a client of `/invocations`
would make, so that it is checked in the same way. Where the model itself refuses the image, the page shows the reason in its place.
"""

import html
import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from components.errors import shorten
from components.reports.plural import plural
from components.serving.request import MAX_STEPS, Refused

IMAGE_PATH = "/image.png"
_MAX_SEED = 2**32 - 1
_MOST_DIGITS = 19
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>celebdit</title><style>
body {{ font-family: sans-serif; margin: 2rem auto; max-width: 34rem; padding: 0 1rem; color: #222 }}
img {{ display: block; width: 100%; max-width: 512px; image-rendering: pixelated; background: #eee; min-height: 8rem }}
label {{ margin-right: 1rem }} input {{ width: 6rem }} .refused {{ color: #a00 }} code {{ overflow-wrap: anywhere }}
</style><script>{script}</script></head><body>
<h1>Faces of this version</h1>
<form method="get" action="./">
<label>seed <input name="seed" type="number" min="0" max="{max_seed}" value="{seed}"></label>
{fields}
<button>Draw</button>
</form>
<p>{shown}</p>
<p id="file">The same seed gives the same image. As a file: <code>curl -s '{address}' -o face.png</code></p>
</body></html>
"""
_STEPS = '<label>steps <input name="num_steps" type="number" min="1" max="{most}" value="{steps}"></label>'
_OTHER = '<label>{name} <input name="{name}" value="{value}"></label>'
_STUDENT_STEPS = "<p>A distilled student: it draws an image in {steps}, for which it was trained.</p>"
# A browser shows a broken image for an answer that is none: the answer is requested once more, for the reason in it.
_SCRIPT = """
async function explain(image) {
  const reason = document.createElement("span");
  reason.className = "refused";
  image.onerror = null;
  try {
    const answer = await fetch(image.src);
    if (answer.ok && answer.headers.get("content-type")?.startsWith("image/")) {
      image.src = URL.createObjectURL(await answer.blob());
      return;
    }
    const text = await answer.text();
    try { reason.textContent = JSON.parse(text).message; } catch { /* the answer of a proxy */ }
    reason.textContent ||= `the server answered ${answer.status} ${text.slice(0, 300)}`;
  } catch { reason.textContent = "the server does not answer: is it still running?"; }
  document.getElementById("file").remove();
  image.replaceWith(reason);
}
"""


def image_request(query: Sequence[tuple[str, str]], *, parameters: Sequence[str]) -> bytes:
    """Return the body of a request for one image from the query of an address: `seed`, and the model's parameters.

    Raises:
        Refused: if a name is given twice or is unknown, or a number is not one.
    """
    values = dict(query)
    if len(values) != len(query):
        raise Refused(400, "a parameter is given twice")
    if unknown := sorted(values.keys() - {"seed", *parameters}):
        raise Refused(400, f"{shorten(repr(unknown[0]))} is unknown: an image has seed, {', '.join(sorted(parameters))}")
    params = {name: _number(name, value) if name == "num_steps" else value for name, value in values.items() if name != "seed"}
    return json.dumps({"dataframe_records": [{"seed": _number("seed", values.get("seed", "0"))}], "params": params}).encode()


def form_page(query: Mapping[str, str], *, default_steps: int, is_student: bool, base_url: str, problem: str | None) -> str:
    """Return the page with the image of `query`, or with `problem`, why there is none.

    That of a student has no field but the seed: it draws in `default_steps` alone. Others have one for each parameter of `query` as well.
    """
    seed, steps = query.get("seed", "0"), query.get("num_steps", str(default_steps))
    values = {"seed": seed, **({} if is_student else {"num_steps": steps}), **query}
    if problem is None:
        address = f"image.png?{html.escape(urlencode(values))}"
        shown = f'<img src="{address}" alt="the face of seed {html.escape(seed)}" onerror="explain(this)">'
    else:
        shown, address = f'<span class="refused">{html.escape(problem)}</span>', "image.png?seed=0"
    if is_student:
        fields = _STUDENT_STEPS.format(steps=plural(default_steps, "step"))
    else:
        others = {} if problem is not None else {name: value for name, value in query.items() if name not in ("seed", "num_steps")}
        more = [_OTHER.format(name=html.escape(name), value=html.escape(value)) for name, value in others.items()]
        fields = "\n".join([_STEPS.format(steps=html.escape(steps), most=MAX_STEPS), *more])
    return _PAGE.format(
        script=_SCRIPT, seed=html.escape(seed), max_seed=_MAX_SEED, fields=fields, shown=shown, address=html.escape(base_url) + address
    )


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise Refused(400, f"{name} {shorten(repr(text), max_characters=40)} is not a whole number")
    return int(text)
