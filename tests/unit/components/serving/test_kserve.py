"""The InferenceService of a version has a name that KServe accepts, whatever its model is called."""

import re

import pytest

from components.registry.config import check_model_name
from components.serving.kserve import inference_service

# IsvcNameFmt of KServe's admission webhook.
KSERVE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@pytest.mark.parametrize("name", ["celebdit", "2026-faces", "7", "Faces_v1.2", "a" + "-" * 126 + "b", "9" * 128, "x." + "_" * 80])
def test_every_name_of_a_model_gives_one_that_kserve_accepts(name: str) -> None:
    service = inference_service(
        check_model_name(name),
        version="1",
        location="s3://bucket/models",
        image="registry.example/serve",
        gpus=0,
        service_account="celebdit-serving",
        checkpoint_digest="a" * 64,
        manifest_sha256="b" * 64,
    )
    assert KSERVE_NAME.fullmatch(service["metadata"]["name"])
