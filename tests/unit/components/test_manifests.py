"""Manifests in files."""

from pathlib import Path

import pytest
from celebdit_testing.recipes import dataset_manifest

from components.errors import DataRefused
from components.manifests import DatasetManifest, EvaluationReport


def test_a_manifest_survives_a_file_and_refuses_another_kind(tmp_path: Path) -> None:
    manifest = dataset_manifest()
    manifest.dump(tmp_path / "m")
    assert DatasetManifest.load(tmp_path / "m") == manifest
    with pytest.raises(DataRefused, match="is not a EvaluationReport"):
        EvaluationReport.load(tmp_path / "m")
    (tmp_path / "m").write_text("{")
    with pytest.raises(DataRefused):
        DatasetManifest.load(tmp_path / "m")
    with pytest.raises(DataRefused, match="no DatasetManifest at"):
        DatasetManifest.load(tmp_path / "absent")
