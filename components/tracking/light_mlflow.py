"""Import of MLflow's client without what a step that only records never uses: pandas, and MLflow's parts for language models.

`import mlflow` takes 1.6 s of processor time (3.17) in the pod of each such step, and so less than half. MLflow itself supports an
environment without pandas (mlflow-skinny). A process that packages or loads a model needs all of MLflow: do not call this there.
"""

import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_LEFT_OUT = ("pandas", "numpy", "scipy", "pyarrow")
"""Cannot be imported while MLflow is, as if they were not installed. Afterwards they can."""
_DEFERRED = ("mlflow.genai", "mlflow.gateway")
"""Are imported when something of them is used."""
_NOTEBOOKS = ("IPython", "dbruntime", "pyspark")
"""MLflow looks for them before every request."""


def lighten_mlflow() -> None:
    """Make the first import of MLflow in this process a light one. Does nothing if MLflow is imported already."""
    if "mlflow" in sys.modules:
        return
    sys.meta_path.insert(0, _LightMlflow())
    look_up_once()


def look_up_once() -> None:
    """Let MLflow look once for libraries that are not installed, and for plugins: it does so before every request and for each part."""
    for name in _NOTEBOOKS:
        if importlib.util.find_spec(name) is None:
            sys.modules.update({name: None})  # type: ignore[dict-item]
    # Each answer reads the metadata of all packages again.
    plugins = functools.cache(importlib.metadata.entry_points)
    importlib.metadata.entry_points = lambda **selection: plugins().select(**selection)  # type: ignore[assignment]


class _LightMlflow(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "mlflow" and fullname not in _DEFERRED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Light(spec.loader) if fullname == "mlflow" else importlib.util.LazyLoader(spec.loader)
        return spec


class _Light(Loader):
    """Executes a package while the libraries that are left out cannot be imported."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _hide_modules(_LEFT_OUT):
            self._loader.exec_module(module)


@contextmanager
def _hide_modules(names: Sequence[str]) -> Iterator[None]:
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name) is None:
                del sys.modules[name]
