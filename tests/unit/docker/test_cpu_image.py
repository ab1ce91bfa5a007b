"""What the cpu image lacks is used by nothing that it is for: tried in this environment, with those packages hidden.

tests/integration/test_images.py runs the same program in the image.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from celebdit_testing import cpu_image_uses
from PIL import Image

CHECKOUT = Path(__file__).parents[3]
START_MLFLOW = CHECKOUT / "docker" / "kubernetes" / "servers" / "start-mlflow.sh"
_HIDE = """
import sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
HIDDEN = frozenset({hidden})
def find_visible(cls, name, path=None, target=None):
    return None if name in HIDDEN else find_spec(name, path, target)
PathFinder.find_spec = classmethod(find_visible)
"""


def pinned(*names: str) -> set[str]:
    """The packages in requirements files."""
    text = "".join((CHECKOUT / "requirements" / f"{name}.txt").read_text() for name in names)
    return {name.lower() for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}


def not_in_the_image() -> set[str]:
    """The modules at the top of packages that other environments have and the cpu image has not."""
    missing = pinned("run", "dev") - pinned("cpu")
    return {
        module
        for module, distributions in packages_distributions().items()
        if all(re.sub(r"[-_.]+", "-", name).lower() in missing for name in distributions)
    }


def test_only_train_and_evaluate_need_the_packages_that_the_cpu_image_lacks() -> None:
    assert {"scipy", "torchvision", "torch_fidelity", "networkx", "sklearn", "matplotlib", "setuptools"} <= not_in_the_image()
    assert not {"torch", "sympy", "mlflow", "kfp", "pyarrow", "pandas", "psycopg2", "pillow_heif"} & not_in_the_image()


@pytest.mark.timeout(600)
def test_steps_and_servers_of_the_cpu_image_use_nothing_that_it_lacks(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 64), (200, 120, 40)).save(tmp_path / "image.heic", format="HEIF")
    (tmp_path / "sitecustomize.py").write_text(_HIDE.format(hidden=sorted({*not_in_the_image(), "databricks.sdk"})))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)]), "PATH": path}
    program = [sys.executable, str(cpu_image_uses.__file__), str(START_MLFLOW), str(tmp_path / "image.heic")]
    hidden = subprocess.run([sys.executable, "-c", "import scipy"], env=environment, capture_output=True, text=True, check=False)
    assert "No module named 'scipy'" in hidden.stderr
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all used\n")
