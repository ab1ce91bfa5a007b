"""Import modules, so that Python writes the bytecode of all that they load, and of nothing else: `python warm.py NAME...`.

An image's root file system may be read-only, so a module without bytecode is compiled again in every pod. That of all modules would be a
third of their size. Names are `common`, `torch`, `cpu`, `gpu` and `compiler`, one for each layer of packages: `torch` is what the steps of
the cpu image import of it, `gpu` what train and evaluate import besides. Run by `docker/Dockerfile`.
"""

import compileall
import importlib
import sys
from pathlib import Path

_WHOLE = {"common": ("mlflow.server",)}
"""Packages of which some modules need what is in another layer."""
_MODULES = {
    "common": """
        alembic.command annotated_types boto3 boto3.s3.transfer botocore.auth botocore.httpsession botocore.parsers
        botocore.retryhandler botocore.signers botocore.stub click concurrent.futures.process docker email.mime.text
        encodings.idna fastapi flask google.protobuf.json_format graphene gunicorn.app.wsgiapp gunicorn.workers.gthread huey
        jaxtyping jinja2.ext kfp.compiler kfp.dsl.executor_main kfp.local kubernetes.client mlflow mlflow.artifacts mlflow.cli
        mlflow.data.meta_dataset mlflow.pyfunc mlflow.server mlflow.server.fastapi_app mlflow.server.handlers
        mlflow.store.artifact.s3_artifact_repo mlflow.store.tracking.sqlalchemy_store mlflow.store.model_registry.sqlalchemy_store
        mlflow.tracking.client multiprocessing.managers multiprocessing.pool numpy.testing pandas PIL.AvifImagePlugin
        PIL.Image PIL.ImageCms PIL.ImageDraw PIL.ImageFont PIL.JpegImagePlugin PIL.PngImagePlugin PIL.WebPImagePlugin psutil
        pyarrow.dataset pyarrow.parquet pydantic.v1 rich.console rich.live rich.progress rich.table rich.traceback safetensors.numpy
        simplejpeg sqlalchemy.dialects.postgresql sqlalchemy.dialects.sqlite sympy tomli_w tqdm.auto unittest.mock
        uvicorn.workers uvicorn.main yaml
    """,
    "torch": """
        safetensors.torch torch torch.fx.experimental.symbolic_shapes torch.utils.data torch._dynamo
    """,
    "gpu": """
        torchvision torchvision.models torchvision.transforms.v2 torch_fidelity torch_fidelity.feature_extractor_inceptionv3
        torch.distributed.checkpoint torch.distributed.elastic.agent.server.local_elastic_agent torch.distributed.fsdp
        torch.distributed.run torch.nn.parallel.distributed torch.utils.flop_counter
        networkx scipy.linalg scipy.optimize scipy.special scipy.stats
    """,
    "cpu": """
        flask_wtf.csrf httpx2 huggingface_hub huggingface_hub.file_download huggingface_hub.hf_api kagglehub optuna
        optuna.samplers._tpe.sampler pillow_heif pillow_jxl psycopg2.extras sqlalchemy.dialects.postgresql.psycopg2
    """,
    "compiler": """
        torch._inductor.compile_fx torch._inductor.compile_worker torch._inductor.cpp_builder torch._inductor.codegen.cpp
        torch._inductor.codegen.triton torch._inductor.runtime.triton_heuristics torch._inductor.select_algorithm
        torch._inductor.async_compile triton.compiler triton.language triton.runtime
    """,
}


def main(layers: list[str]) -> None:
    """Import the modules of `layers`; one that does not exist in another version is named, for it is only slower."""
    sys.dont_write_bytecode = False
    for layer in layers:
        for name in _MODULES[layer].split():
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not name.startswith(error.name):
                    raise
                print(f"warm.py: there is no module {name}", file=sys.stderr)
        for name in _WHOLE.get(layer, ()):
            compileall.compile_dir(Path(importlib.import_module(name).__file__).parent, quiet=1)


if __name__ == "__main__":
    main(sys.argv[1:])
