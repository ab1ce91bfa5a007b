"""The type checker of `make shapes`: beartype, except for functions annotated with `Self`.

beartype resolves `Self` only where it decorates the class, but jaxtyping's import hook decorates functions (beartype 0.23, jaxtyping 0.3).
The functions left out are validators of the configuration, whose result pydantic checks. A module of its own beside the package
`celebdit_testing`, because the hook imports only the first name of `shape_checks.check_types`.
"""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

_with_ints_as_floats = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its arguments and result checked against their annotations at each call."""
    return function if Self in function.__annotations__.values() else _with_ints_as_floats(function)
