"""Which right a refused request to MLflow needs, and on what: MLflow itself answers `Permission denied` to every one.

The rights are those of MLflow's basic-auth app (READ, USE, EDIT, MANAGE, and DENY, which overrides them), as its 3.17 checks them.
"""

import re

from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds

EXPERIMENT, MODEL = "experiment", "registered model"
_RIGHTS = (
    ("GET", r"mlflow-artifacts/", "READ on the artifacts of the {}", EXPERIMENT),
    ("", r"mlflow-artifacts/.*/models(/|$)", "EDIT on the logged models and their artifacts of the {}", EXPERIMENT),
    ("", r"mlflow-artifacts/", "EDIT on the runs and artifacts of the {}", EXPERIMENT),
    ("", r"experiments/create", "to create experiments", EXPERIMENT),
    ("", r"experiments/", "READ on the {}", EXPERIMENT),
    ("", r"runs/create", "EDIT on the {}, without a DENY on runs", EXPERIMENT),
    ("", r"runs/(get|search)|metrics/get-history|artifacts/list", "READ on the runs of the {}", EXPERIMENT),
    ("", r"runs/(delete|restore)", "MANAGE on the runs of the {}", EXPERIMENT),
    ("", r"runs/log-metric", "EDIT on the runs and the logged models of the {}", EXPERIMENT),
    ("", r"runs/", "EDIT on the runs of the {}", EXPERIMENT),
    ("", r"logged-models/search", "READ on the logged models of the {}", EXPERIMENT),
    ("", r"logged-models/?$", "EDIT on the {}, without a DENY on logged models", EXPERIMENT),
    ("", r"logged-models/", "EDIT on the logged models of the {}", EXPERIMENT),
    ("", r"registered-models/create", "to create the {}", MODEL),
    ("", r"registered-models/(get|search)", "READ on the {}", MODEL),
    ("", r"registered-models/delete$", "MANAGE on the {} and its versions", MODEL),
    ("", r"registered-models/alias", "EDIT on the {}, and MANAGE to remove an alias", MODEL),
    ("", r"registered-models/", "EDIT on the {}", MODEL),
    ("", r"model-versions/create", "EDIT on the {} and READ on the run and the logged model, without a DENY on versions", MODEL),
    ("", r"model-versions/(get|search)", "READ on the {} and its versions", MODEL),
    ("", r"model-versions/delete", "MANAGE on the versions of the {}", MODEL),
    ("", r"model-versions/", "EDIT on the versions of the {}", MODEL),
)
"""Method (any if empty), path, and the right; `{}` is the experiment or the registered model. The first row that fits counts."""


def missing_right(path: str, *, method: str = "", experiment: str | None = None, model: str | None = None) -> str | None:
    """Return the right that a request to `path` needs, on the named experiment or registered model, or None if it is not known."""
    names = {EXPERIMENT: experiment, MODEL: model}
    for of_method, pattern, right, kind in _RIGHTS:
        if (not of_method or of_method == method) and re.search(pattern, path):
            name = names[kind]
            return right.format(kind if name is None else f"{kind} {name!r}")
    return None


def mlflow_user() -> str | None:
    """Return the name by which this process logs in to MLflow, or None if it does not, or with a token."""
    return read_mlflow_creds().username or None


def sends_token(uri: str) -> bool:
    """Return whether this process logs in to MLflow with a token."""
    return bool(get_default_host_creds(uri).token)
