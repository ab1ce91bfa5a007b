"""Digests in the overlays: written by `make images`, placeholders refused."""

import shutil
from pathlib import Path

import pytest
import yaml

from components.errors import BadInput
from pipeline.doctor.overlays import check_overlays
from pipeline.images import Images
from pipeline.overlays import kustomizations, placeholders, write_digests

SHIPPED = Path(__file__).parents[3] / "docker" / "kubernetes" / "overlays"
IMAGES = Images(cpu="registry.example:5000/team/cpu@sha256:" + "a" * 64, gpu="registry.example:5000/team/gpu@sha256:" + "b" * 64)


@pytest.fixture
def overlays(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "overlays")
    return tmp_path / "overlays"


def test_the_digests_are_written_once_and_nothing_else_changes(overlays: Path) -> None:
    assert [path.parent.name for path in kustomizations(overlays)] == ["development", "production"]
    for path in kustomizations(overlays):
        before = path.read_text()
        assert placeholders(path) == ["celebdit-cpu", "celebdit-gpu", "postgres"]
        assert write_digests(path, IMAGES)
        assert not write_digests(path, IMAGES)
        entries = {entry["name"]: entry for entry in yaml.safe_load(path.read_text())["images"]}
        assert entries["celebdit-cpu"] == {
            "name": "celebdit-cpu",
            "newName": "registry.example:5000/team/cpu",
            "digest": "sha256:" + "a" * 64,
        }
        assert entries["celebdit-gpu"]["digest"] == "sha256:" + "b" * 64
        assert placeholders(path) == ["postgres"]
        same = [line for line in path.read_text().splitlines() if "registry.example" not in line and "sha256:" not in line]
        assert same == [line for line in before.splitlines() if not line.startswith("    newName: celebdit") and "sha256:" not in line]


def test_other_forms_of_an_entry_are_replaced_and_a_missing_one_is_named(overlays: Path) -> None:
    path = overlays / "production" / "kustomization.yaml"
    path.write_text("images:\n- name: celebdit-cpu\n  newTag: v1\n- name: celebdit-gpu\nresources: []\n")
    assert write_digests(path, IMAGES)
    loaded = yaml.safe_load(path.read_text())
    assert [sorted(entry) for entry in loaded["images"]] == [["digest", "name", "newName"]] * 2
    assert loaded["resources"] == []
    path.write_text("images:\n- name: celebdit-cpu\n")
    with pytest.raises(BadInput, match="has no image celebdit-gpu"):
        write_digests(path, IMAGES)


def test_the_doctor_refuses_placeholders_until_one_overlay_has_every_digest(overlays: Path, tmp_path: Path) -> None:
    refused = check_overlays(overlays)
    assert [(check.state, "celebdit-cpu, celebdit-gpu, postgres" in check.found) for check in refused] == [("fail", True)] * 2
    path = overlays / "production" / "kustomization.yaml"
    write_digests(path, IMAGES)
    assert "digests of postgres" in check_overlays(overlays)[1].found
    path.write_text(path.read_text().replace("sha256:" + "0" * 64, "sha256:" + "c" * 64))
    assert [(check.state, check.found) for check in check_overlays(overlays)] == [("ok", "production: every image has its digest")]
    assert check_overlays(tmp_path / "no-checkout") == []
