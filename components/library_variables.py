"""The environment variables that libraries read: boto3, MLflow, requests, kagglehub, torch, Kubernetes and others.

celebdit reads some of them too, or sets them if they are not set. `components/environment.py` has those of the project itself.
"""

from typing import Any

from components.environment_variable import CONFIG_MAP, HUB_SECRET, KAGGLE_SECRET, MLFLOW_SECRET, S3_SECRET, Variable

_TORCHRUN = "torchrun's ranks"
_INGEST = ("ingest",)
_DISTRIBUTED = ("train", "evaluate")
_PROXIED = "MLflow, `submit`, `doctor --cluster`, `models package`"


def _library(name: str, read_by: str, description: str, default: str | None = None, **more: Any) -> Variable:
    return Variable(name, "libraries", read_by, description, default, **more)


LIBRARY_VARIABLES: tuple[Variable, ...] = (
    _library("AWS_ACCESS_KEY_ID", "boto3; preflight checks that it is set", "key id for object storage", secret=True, pods=S3_SECRET),
    _library("AWS_SECRET_ACCESS_KEY", "boto3; preflight checks that it is set", "key for object storage", secret=True, pods=S3_SECRET),
    _library("AWS_SESSION_TOKEN", "boto3", "third part of temporary credentials, with both keys", secret=True, pods=S3_SECRET),
    _library("AWS_REGION", "object storage", "region of the bucket", "that of the profile; us-east-1", pods=CONFIG_MAP),
    _library("AWS_DEFAULT_REGION", "object storage", "the same, if `AWS_REGION` is not set"),
    _library(
        "AWS_S3_ADDRESSING_STYLE",
        "object storage",
        "`path`, `virtual` or `auto`",
        "`path` for IP addresses and cluster services",
        pods=CONFIG_MAP,
    ),
    _library(
        "MLFLOW_S3_UPLOAD_EXTRA_ARGS",
        "MLflow",
        "parameters of MLflow's own uploads to S3, as JSON",
        "from the four settings of S3 above",
        pods=CONFIG_MAP,
    ),
    _library(
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE",
        "MLflow",
        "addressing style of MLflow's own uploads",
        "`AWS_S3_ADDRESSING_STYLE`",
        pods=CONFIG_MAP,
    ),
    _library(
        "MLFLOW_S3_ENDPOINT_URL",
        "MLflow",
        "address of the S3 server of MLflow's artifacts, where its clients read and write them themselves",
        "`AWS_ENDPOINT_URL`",
        pods=CONFIG_MAP,
    ),
    _library("AWS_PROFILE", "boto3; preflight", "profile with credentials, instead of the keys"),
    # Not from the ConfigMap: where a pod names it already, the webhook of EKS or Azure leaves out its own.
    _library("AWS_WEB_IDENTITY_TOKEN_FILE", "boto3; preflight", "file with a token, instead of the keys", is_file=True),
    _library("AWS_ROLE_ARN", "boto3", "role that is assumed with that token"),
    _library(
        "AWS_ENDPOINT_URL_STS",
        "boto3",
        "address of the server that exchanges the token for credentials",
        "`AWS_ENDPOINT_URL`, or AWS",
        pods=CONFIG_MAP,
    ),
    _library(
        "AWS_CA_BUNDLE", "boto3", "certificate authorities of object storage, in PEM", "those of certifi", pods=CONFIG_MAP, is_file=True
    ),
    _library("AWS_CONTAINER_CREDENTIALS_FULL_URI", "boto3; preflight", "where credentials are served, instead of the keys"),
    _library("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "boto3; preflight", "where credentials are served, instead of the keys"),
    _library("AWS_REQUEST_CHECKSUM_CALCULATION", "boto3", "checksums of uploads; set for embedded servers", "when_required"),
    _library("AWS_RESPONSE_CHECKSUM_VALIDATION", "boto3", "checksums of downloads; set for embedded servers", "when_required"),
    _library("AWS_CONFIG_FILE", "boto3", "AWS profiles; an empty file for embedded servers", "~/.aws/config"),
    _library("AWS_SHARED_CREDENTIALS_FILE", "boto3", "credentials of profiles; an empty file for embedded servers", "~/.aws/credentials"),
    _library("NETRC", "requests", "passwords of hosts; an empty file for embedded servers", "~/.netrc"),
    _library(
        "REQUESTS_CA_BUNDLE",
        "MLflow, kagglehub",
        "certificate authorities of all HTTPS servers but object storage",
        "those of certifi",
        pods=CONFIG_MAP,
        is_file=True,
    ),
    _library(
        "SSL_CERT_FILE",
        "Python",
        "certificate authorities for programs that use neither requests nor boto3",
        "those of the system",
        pods=CONFIG_MAP,
        is_file=True,
    ),
    _library("HTTP_PROXY", f"boto3, {_PROXIED}", "proxy for http addresses", pods=CONFIG_MAP),
    _library("http_proxy", f"boto3, {_PROXIED}", "the same; wins over `HTTP_PROXY`", pods=CONFIG_MAP),
    _library("HTTPS_PROXY", f"boto3, {_PROXIED}", "proxy for https addresses", pods=CONFIG_MAP),
    _library("https_proxy", f"boto3, {_PROXIED}", "the same; wins over `HTTPS_PROXY`", pods=CONFIG_MAP),
    _library("ALL_PROXY", _PROXIED, "proxy for addresses that no other proxy is set for", pods=CONFIG_MAP),
    _library("all_proxy", _PROXIED, "the same; wins over `ALL_PROXY`", pods=CONFIG_MAP),
    _library(
        "NO_PROXY",
        f"boto3, {_PROXIED}",
        "hosts that are reached without a proxy, and networks (10.0.0.0/8), which boto3 cannot read; 127.0.0.1 is added by itself",
        pods=CONFIG_MAP,
    ),
    _library("no_proxy", f"boto3, {_PROXIED}", "the same; wins over `NO_PROXY`", pods=CONFIG_MAP),
    _library("MLFLOW_TRACKING_USERNAME", "MLflow", "user name for MLflow", pods=MLFLOW_SECRET),
    _library("MLFLOW_TRACKING_PASSWORD", "MLflow", "password for MLflow", secret=True, pods=MLFLOW_SECRET),
    _library("MLFLOW_TRACKING_TOKEN", "MLflow", "bearer token for MLflow; set for embedded servers", secret=True, pods=MLFLOW_SECRET),
    _library(
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "MLflow",
        "certificate authorities of MLflow alone",
        "`REQUESTS_CA_BUNDLE`",
        pods=CONFIG_MAP,
        is_file=True,
    ),
    _library(
        "MLFLOW_TRACKING_CLIENT_CERT_PATH",
        "MLflow",
        "certificate and key with which MLflow's clients identify themselves",
        pods=CONFIG_MAP,
        is_file=True,
    ),
    _library("MLFLOW_TRACKING_INSECURE_TLS", "MLflow", "`true` accepts any certificate of MLflow; pods need its authority, as a file"),
    _library("MLFLOW_TRACKING_AUTH", "MLflow", "plugin that authenticates requests, if it is installed; the images have none"),
    _library("MLFLOW_TRACKING_AWS_SIGV4", "MLflow", "`true` signs requests, if requests-auth-aws-sigv4 is installed; the images lack it"),
    _library("MLFLOW_WORKSPACE", "MLflow", "workspace, on a server that has several", "that of the server", pods=CONFIG_MAP),
    _library(
        "MLFLOW_REGISTRY_URI", "every step and command", "refused if it is not `MLFLOW_TRACKING_URI`: one server keeps runs and versions"
    ),
    _library("MLFLOW_RUN_ID", "every step", "run that Kubeflow Pipelines' MLflow plugin opened for this task; it is joined"),
    _library("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLflow", "seconds for one request", "20; 10 at most while training", pods=CONFIG_MAP),
    _library("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLflow", "retries of one request", "3; 1 at most while training", pods=CONFIG_MAP),
    _library("MLFLOW_CONFIGURE_LOGGING", "MLflow", "a log handler of MLflow's own", "false"),
    _library("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "MLflow", "no addresses on stdout, which is for JSON", "true"),
    _library("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLflow", "progress bars of uploads", "false"),
    _library("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "MLflow", "uploads that bypass the MLflow server", "false"),
    _library("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLflow", "downloads that bypass the MLflow server", "false"),
    _library(
        "KAGGLE_API_TOKEN",
        "kagglehub, in ingest",
        "token for Kaggle; public datasets need none",
        secret=True,
        pods=KAGGLE_SECRET,
        steps=_INGEST,
    ),
    _library(
        "KAGGLE_USERNAME",
        "kagglehub, in ingest",
        "user name for Kaggle, with `KAGGLE_KEY` instead of the token",
        pods=KAGGLE_SECRET,
        steps=_INGEST,
    ),
    _library("KAGGLE_KEY", "kagglehub, in ingest", "key for Kaggle", secret=True, pods=KAGGLE_SECRET, steps=_INGEST),
    _library(
        "HF_TOKEN",
        "huggingface-hub, in ingest",
        "token for the hub; public datasets need none",
        secret=True,
        pods=HUB_SECRET,
        steps=_INGEST,
    ),
    _library("HF_ENDPOINT", "huggingface-hub, in ingest", "address of the hub or of a mirror", "https://huggingface.co"),
    _library("HF_HUB_DISABLE_PROGRESS_BARS", "huggingface-hub, in ingest", "no progress bars; set for ingest", "1"),
    _library("HF_HUB_DISABLE_TELEMETRY", "huggingface-hub, in ingest", "no telemetry; set for ingest", "1"),
    _library("KAGGLEHUB_VERBOSITY", "kagglehub, in ingest", "what kagglehub logs", "error"),
    _library("DOCKER_HOST", "run --runner container, doctor", "address of the container engine", "docker's socket, then podman"),
    _library("KUBECONFIG", "train, doctor", "configuration of kubectl, outside a cluster", "~/.kube/config"),
    _library("KUBERNETES_SERVICE_HOST", "train, doctor", "set inside a cluster: the pod's service account is used"),
    _library("RANK", _TORCHRUN, "number of the process among all; torchrun sets it"),
    _library("LOCAL_RANK", _TORCHRUN, "number of the process on its machine; torchrun sets it"),
    _library("WORLD_SIZE", _TORCHRUN, "number of processes; torchrun sets it"),
    _library("LOCAL_WORLD_SIZE", _TORCHRUN, "number of processes on this machine; torchrun sets it"),
    _library("PET_NNODES", "the nodes of a TrainJob", "number of nodes; Kubeflow Trainer sets this and the three below"),
    _library("PET_NODE_RANK", "the nodes of a TrainJob", "number of this node"),
    _library("PET_MASTER_ADDR", "the nodes of a TrainJob", "address of the first node, at which all meet"),
    _library("PET_MASTER_PORT", "the nodes of a TrainJob", "its port"),
    _library("KUBEFLOW_TRAINER_SERVER_URL", "the nodes of a TrainJob", "where to report progress; Trainer sets this and the two below"),
    _library("KUBEFLOW_TRAINER_SERVER_TOKEN", "the nodes of a TrainJob", "file with the token for it, which is rotated"),
    _library("KUBEFLOW_TRAINER_SERVER_CA_CERT", "the nodes of a TrainJob", "file with its certificate authority"),
    _library("NCCL_SOCKET_IFNAME", "NCCL", "network interface of the ranks on GPUs", "chosen by NCCL", pods=CONFIG_MAP, steps=_DISTRIBUTED),
    _library(
        "GLOO_SOCKET_IFNAME",
        "Gloo",
        "network interface of the ranks on CPUs",
        "that of the host's name",
        pods=CONFIG_MAP,
        steps=_DISTRIBUTED,
    ),
    _library("OMP_NUM_THREADS", "numeric libraries", "threads of a process; set to `resources.threads` for ranks"),
    _library("CUBLAS_WORKSPACE_CONFIG", "cuBLAS", "set with `training.deterministic`", ":4096:8"),
    _library("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "torch", "refuse pickles that are not plain weights; always set", "1"),
    _library("TORCHINDUCTOR_CACHE_DIR", "torch", "compiled kernels", "below `CELEBDIT_WORK_DIR`"),
    _library("TRITON_CACHE_DIR", "Triton", "compiled kernels", "below `CELEBDIT_WORK_DIR`"),
    _library("PATH", "every child process", "passed on to all of them; to the decoders of ingest with hardly anything else"),
    _library("PYTHONPATH", "every child process", "child processes get its absolute paths; relative ones are dropped"),
    _library("PYTHONSAFEPATH", "every child process", "no imports from the current folder; always set for them", "1"),
    _library("REGISTRY_AUTH_FILE", "models package, podman", "file with logins for container registries", "podman's, else docker's"),
    _library("XDG_RUNTIME_DIR", "models package, podman", "folder in which podman keeps `containers/auth.json`"),
    _library("DOCKER_CONFIG", "models package, docker", "folder in which docker keeps `config.json`", "`~/.docker`"),
)
