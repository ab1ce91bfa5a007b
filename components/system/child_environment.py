"""The environment of each kind of child process: the variables that it needs, and none of the others.

Promises: pure. A variable that is not listed for a kind does not reach it, so a secret of the shell stays with the process that uses it.
Python children, and theirs, import nothing from the folder that they are started in: PYTHONSAFEPATH is set, and of PYTHONPATH only
absolute paths are kept. File names are made absolute, because children run in other folders.
"""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from components.environment import (
    CREDENTIALS,
    EVENTS,
    LAST_WORDS,
    LIFELINE,
    LOG_LEVEL,
    MLFLOW,
    OWN_SERVERS,
    RENDEZVOUS,
    S3_ENDPOINT,
    S3_ENDPOINT_FIRST,
    STORE_DISK,
    VARIABLES,
    WORK_DIR,
)
from components.system.work_folders import WorkFolder

Kind = Literal["decoder", "container", "server", "serving", "measurement", "rank", "step"]

_START = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Without these an interpreter or its libraries may not start."""
_SYSTEM = (
    *_START,
    *("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "XDG_*", "NO_COLOR", "LD_PRELOAD", "MALLOC_*"),
    *("GLIBC_TUNABLES", "PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONFAULTHANDLER", "PYTHONNOUSERSITE", "PYTHONHASHSEED"),
)
_NUMERIC = ("OMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "GOTO_*", "NUMEXPR_*", "GOMP_*", "VECLIB_*")
_DEVICES = (
    *("CUDA_*", "CUBLAS_*", "CUDNN_*", "NVIDIA_*", "NCCL_*", "GLOO_*", "TORCH*", "PYTORCH_*", "TRITON_*", "INDUCTOR_*"),
    *("HIP_*", "HSA_*", "ROCR_*", "MIOPEN_*", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH"),
    *("UCX_*", "NVSHMEM_*", "SHARP_*", "FI_*", "OFI_*", "RDMAV_*", "IBV_*"),
)
_TORCHRUN = (
    *("PET_*", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "KUBEFLOW_TRAINER_SERVER_*"),
)
_PROXIES = tuple(name for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (proxy, proxy.lower()))
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_IN_PODS = tuple(variable.name for variable in VARIABLES if variable.pods and variable.steps != ("ingest",))
"""What the pods of the steps get, the processes of a step get on any machine."""
MOUNTED_FILES = tuple(variable.name for variable in VARIABLES if variable.is_file)
"""Variables whose files are mounted into the containers of a run."""
_WEB_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME")
_RUN = (
    *(variable.name for variable in VARIABLES if variable.group in ("servers", "run")),
    *_IN_PODS,
    *(EVENTS, LAST_WORDS, LIFELINE, LOG_LEVEL, OWN_SERVERS, RENDEZVOUS),
)
_STORAGE_WITHOUT_FILES = (
    *CREDENTIALS,
    *("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", S3_ENDPOINT, S3_ENDPOINT_FIRST, "AWS_S3_ADDRESSING_STYLE"),
    *("AWS_CONTAINER_CREDENTIALS_*", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_*_CHECKSUM_*", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"),
)
_STORAGE = (*_STORAGE_WITHOUT_FILES, "AWS_*")
_TRACKING_WITHOUT_FILES = (
    *(MLFLOW, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_INSECURE_TLS"),
    *("MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_AUTH", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_WORKSPACE"),
    *("MLFLOW_HTTP_*", "MLFLOW_S3_*", "MLFLOW_BOTO_*", "MLFLOW_ENABLE_*", "MLFLOW_MULTIPART_*", "MLFLOW_ARTIFACT_*"),
    *("MLFLOW_CONFIGURE_LOGGING", "MLFLOW_LOGGING_LEVEL", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "MLFLOW_DISABLE_TELEMETRY"),
    *("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "MLFLOW_ALLOW_HTTP_REDIRECTS", "DO_NOT_TRACK", "NETRC"),
)
_TRACKING = (*_TRACKING_WITHOUT_FILES, "MLFLOW_TRACKING_*_CERT_PATH")
_SERVED_MODEL = ("__pyfunc_model_path__", "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT")
_WEIGHTS = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD",)
_RANK = (*_SYSTEM, *_NUMERIC, *_DEVICES, *_TORCHRUN, *_PROXIES, *_CERTIFICATES, *_RUN, STORE_DISK, *_STORAGE, *_TRACKING)

NEEDED: Mapping[Kind, tuple[str, ...]] = {
    "decoder": _START,
    "server": (*_SYSTEM, *_NUMERIC),
    "measurement": (*_SYSTEM, *_NUMERIC, *_DEVICES),
    "serving": (*_SYSTEM, *_NUMERIC, *_DEVICES, *_SERVED_MODEL),
    "container": (
        *(*_RUN, *_STORAGE_WITHOUT_FILES, *_TRACKING_WITHOUT_FILES, *_PROXIES, *MOUNTED_FILES, *_WEB_IDENTITY, *_WEIGHTS),
        *("OMP_NUM_THREADS", "PYTHONUNBUFFERED"),
    ),
    "rank": _RANK,
    "step": (*_RANK, "KAGGLE*", "HF_*", "KUBECONFIG", "KUBERNETES_*"),
}
"""Names, or patterns of names, of the variables that a child gets. A decoder, a server of a model and a measurement get no secret;
an embedded server gets its own from who starts it; of names of files a container gets those of `MOUNTED_FILES` alone."""

_PATHS = (
    *_CERTIFICATES,
    *MOUNTED_FILES,
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_DATA_PATH", "KAGGLE_CONFIG_DIR", "KAGGLEHUB_CACHE", "HF_HOME", "KUBECONFIG"),
    *("HOME", "TMPDIR", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", WORK_DIR, EVENTS, LAST_WORDS),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
)
_LISTS_OF_PATHS = ("KUBECONFIG", "SSL_CERT_DIR")


def compiler_caches(work_dir: Path) -> dict[str, str]:
    """Return where torch keeps the kernels that it compiled: by default in folders below /tmp with names that other users can guess."""
    caches = work_dir / WorkFolder.COMPILED
    return {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "TRITON_CACHE_DIR": str(caches / "triton")}


def child_environment(kind: Kind, environment: Mapping[str, str] | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a child of `kind`: what it needs of `environment`, by default this process's own, and `more`."""
    environment = os.environ if environment is None else environment
    needed = NEEDED[kind]
    kept = {name: value for name, value in environment.items() if any(fnmatchcase(name, pattern) for pattern in needed)}
    for name in _PATHS:
        if kept.get(name):
            parts = kept[name].split(os.pathsep) if name in _LISTS_OF_PATHS else [kept[name]]
            kept[name] = os.pathsep.join(os.path.abspath(part) for part in parts if part)  # noqa: PTH100
    folders = [folder for folder in kept.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(folder)]  # noqa: PTH117
    if folders:
        kept["PYTHONPATH"] = os.pathsep.join(folders)
    return {**kept, "PYTHONSAFEPATH": "1", **more}
