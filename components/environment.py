"""The environment variables of the project: the name, reader, default and meaning of each, and the page that lists them.

Promises: pure. A CELEBDIT_* variable that is not in `VARIABLES` is not read anywhere; only `components/settings.py` and
`components/command_settings.py` read them. docs/environment.md is `environment_page()`, and a test compares the two.
"""

from dataclasses import dataclass
from typing import Literal

STORE = "CELEBDIT_STORE"
MLFLOW = "MLFLOW_TRACKING_URI"
S3_ENDPOINT = "AWS_ENDPOINT_URL"
S3_ENDPOINT_FIRST = "AWS_ENDPOINT_URL_S3"
STORAGE_DEADLINE = "CELEBDIT_STORAGE_DEADLINE_S"
EXPERIMENT = "CELEBDIT_EXPERIMENT"
PRESET = "CELEBDIT_PRESET"
WORK_DIR = "CELEBDIT_WORK_DIR"
RUN_ID = "CELEBDIT_RUN_ID"
RUN_URL = "CELEBDIT_RUN_URL"
KFP_UI = "CELEBDIT_KFP_UI"
EVENTS = "CELEBDIT_EVENTS"
LIFELINE = "CELEBDIT_LIFELINE"
STORE_DISK = "CELEBDIT_STORE_DISK"
LOG_LEVEL = "CELEBDIT_LOG_LEVEL"
GIT_COMMIT = "CELEBDIT_GIT_COMMIT"
IMAGE = "CELEBDIT_IMAGE"
IMAGE_DIGEST = "CELEBDIT_IMAGE_DIGEST"
NAMESPACE = "CELEBDIT_NAMESPACE"
POD = "CELEBDIT_POD"
LAST_WORDS = "CELEBDIT_LAST_WORDS"
HOME = "CELEBDIT_HOME"
MODEL = "CELEBDIT_MODEL"
WEBHOOK = "CELEBDIT_WEBHOOK_URL"
KFP_ENDPOINT = "KF_PIPELINES_ENDPOINT"
KFP_NAMESPACE = "CELEBDIT_KFP_NAMESPACE"
KFP_TOKEN = "CELEBDIT_KFP_TOKEN"  # noqa: S105 - the name of a variable
KFP_COOKIES = "CELEBDIT_KFP_COOKIES"
KFP_CA_FILE = "CELEBDIT_KFP_CA_FILE"
RENDEZVOUS = "CELEBDIT_RENDEZVOUS"
SERVER_MARK = "CELEBDIT_SERVICE"
SERVER_S3_SECRET = "CELEBDIT_S3_SECRET"  # noqa: S105
OWN_SERVERS = "CELEBDIT_OWN_SERVERS"
SERVER_TOKEN = "CELEBDIT_MLFLOW_TOKEN"  # noqa: S105
TRACKING_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

Group = Literal["servers", "run", "command", "internal", "compose", "libraries"]


@dataclass(frozen=True)
class Variable:
    """One environment variable; `default` is what applies where it is not set, None if nothing does."""

    name: str
    group: Group
    read_by: str
    description: str
    default: str | None = None
    secret: bool = False


_TITLES: dict[Group, tuple[str, str]] = {
    "servers": ("Servers", "Set `CELEBDIT_STORE` and `MLFLOW_TRACKING_URI` together, or neither: `celebdit run` then starts its own."),
    "run": ("A run and its steps", "On Kubernetes the compiled pipeline and the ConfigMap `celebdit-config` set these."),
    "command": ("The command line", "Flags win over these."),
    "internal": ("Set by celebdit itself", "Listed so that a name in a process's environment can be looked up. Do not set them."),
    "compose": ("docker/compose.yaml", "Set them in `docker/.env`; no Python code reads them."),
    "libraries": (
        "Read by libraries",
        "They belong to boto3, MLflow, torchrun, Kubernetes and others. celebdit reads these too, or sets them if they are not set.",
    ),
}
_TORCHRUN = "torchrun's ranks"

VARIABLES: tuple[Variable, ...] = (
    Variable(STORE, "servers", "every step and command", "S3 location of datasets and runs, like `s3://bucket/prefix`", "embedded server"),
    Variable(MLFLOW, "servers", "every step and command, MLflow", "address of the MLflow server, without credentials", "embedded server"),
    Variable(S3_ENDPOINT, "servers", "every step and command, boto3", "address of the S3 server, like `http://host:9000`", "AWS"),
    Variable(S3_ENDPOINT_FIRST, "servers", "every step and command, boto3", f"the same; wins over `{S3_ENDPOINT}`"),
    Variable(STORAGE_DEADLINE, "servers", "every step and command", "seconds for which a call to object storage is retried", "300"),
    Variable(EXPERIMENT, "run", "every step and command", "name of the MLflow experiment", "celebdit"),
    Variable(WORK_DIR, "run", "every step", "folder for packed datasets, checkpoints and journals", "`$TMPDIR/celebdit`; `.celebdit/work`"),
    Variable(RUN_ID, "run", "every step", "id of the pipeline run; a step without it exits with 2"),
    Variable(RUN_URL, "run", "every step", "address of the pipeline run in Kubeflow Pipelines, a tag of MLflow's runs", f"from `{KFP_UI}`"),
    Variable(KFP_UI, "run", "every step", "address of the Kubeflow Pipelines UI, to which MLflow's runs link"),
    Variable(PRESET, "run", "every step", "name of the preset, a tag of MLflow's runs"),
    Variable(GIT_COMMIT, "run", "every step", "commit of the code, a tag of MLflow's runs; the images set it", "that of the checkout"),
    Variable(IMAGE_DIGEST, "run", "every step", "digest of the step's image, a tag of MLflow's runs"),
    Variable(IMAGE, "run", "train, if `resources.nodes` > 1", "image by digest for the pods of a TrainJob"),
    Variable(NAMESPACE, "run", "train, if `resources.nodes` > 1", "namespace of the step's pod", "that of the service account"),
    Variable(POD, "run", "train, if `resources.nodes` > 1", "name of the step's pod; its workflow becomes the owner of the TrainJob"),
    Variable(LOG_LEVEL, "command", "every command and step", "DEBUG, INFO, WARNING or ERROR, like `-v`", "WARNING; INFO in steps"),
    Variable(HOME, "command", "every command", "folder for local state, like `--home`", ".celebdit"),
    Variable(MODEL, "command", "models, import-checkpoint", "name of the registered model, like `--model`", "celebdit"),
    Variable(
        WEBHOOK,
        "command",
        "models promote, models rollback",
        "http(s) address that receives each promotion and rollback as JSON",
        secret=True,
    ),
    Variable(KFP_ENDPOINT, "command", "submit, resume, schedule, runs, doctor", "address of Kubeflow Pipelines, like `--endpoint`"),
    Variable(KFP_NAMESPACE, "command", "submit, resume, schedule, runs, doctor", "your namespace there, like `--namespace`"),
    Variable(KFP_TOKEN, "command", "submit, resume, schedule, runs, doctor", "bearer token for Kubeflow Pipelines", secret=True),
    Variable(KFP_COOKIES, "command", "submit, resume, schedule, runs, doctor", "cookies for Kubeflow Pipelines, `a=b; c=d`", secret=True),
    Variable(KFP_CA_FILE, "command", "submit, resume, schedule, runs, doctor", "file with the certificate authority of Kubeflow Pipelines"),
    Variable(EVENTS, "internal", "every step", "file to which events are appended as JSON lines", "stderr, as text"),
    Variable(LIFELINE, "internal", "every step and rank", "file that is locked while the run's command lives; the process ends with it"),
    Variable(STORE_DISK, "internal", "every step and rank", "folder in which the embedded object storage keeps its objects"),
    Variable(LAST_WORDS, "internal", "the nodes of a TrainJob", "file for the reason of a failure", "/dev/termination-log"),
    Variable(RENDEZVOUS, "internal", "ranks of one machine", "file through which the ranks of one machine find each other"),
    Variable(OWN_SERVERS, "internal", "every step and command", "user and ports of the embedded servers; others are refused"),
    Variable(SERVER_MARK, "internal", "embedded servers", "mark by which the process of an embedded server is recognised"),
    Variable(SERVER_S3_SECRET, "internal", "embedded servers", "secret key of the embedded S3 server", secret=True),
    Variable(SERVER_TOKEN, "internal", "embedded servers", "token that the embedded MLflow server asks for", secret=True),
    Variable("CELEBDIT_CPU_IMAGE", "compose", "docker compose", "image of both servers, by digest; required"),
    Variable("CELEBDIT_LISTEN", "compose", "docker compose", "address that both servers are published on", "127.0.0.1"),
    Variable("CELEBDIT_S3_PORT", "compose", "docker compose", "port of the S3 server", "9000"),
    Variable("CELEBDIT_MLFLOW_PORT", "compose", "docker compose", "port of the MLflow server", "5000"),
    Variable("CELEBDIT_MLFLOW_HOSTS", "compose", "docker compose", "host names that MLflow answers to", "localhost,localhost:*"),
    Variable("AWS_ACCESS_KEY_ID", "libraries", "boto3; preflight checks that it is set", "key id for object storage", secret=True),
    Variable("AWS_SECRET_ACCESS_KEY", "libraries", "boto3; preflight checks that it is set", "key for object storage", secret=True),
    Variable("AWS_REGION", "libraries", "object storage", "region of the bucket", "us-east-1"),
    Variable("AWS_DEFAULT_REGION", "libraries", "object storage", "the same, if `AWS_REGION` is not set"),
    Variable(
        "AWS_S3_ADDRESSING_STYLE",
        "libraries",
        "object storage",
        "`path`, `virtual` or `auto`",
        "`path` for IP addresses and cluster services",
    ),
    Variable("AWS_PROFILE", "libraries", "boto3; preflight", "profile with credentials, instead of the keys"),
    Variable("AWS_WEB_IDENTITY_TOKEN_FILE", "libraries", "boto3; preflight", "file with a token, instead of the keys"),
    Variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", "libraries", "boto3; preflight", "where credentials are served, instead of the keys"),
    Variable(
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "libraries", "boto3; preflight", "where credentials are served, instead of the keys"
    ),
    Variable("AWS_REQUEST_CHECKSUM_CALCULATION", "libraries", "boto3", "checksums of uploads; set for embedded servers", "when_required"),
    Variable("AWS_RESPONSE_CHECKSUM_VALIDATION", "libraries", "boto3", "checksums of downloads; set for embedded servers", "when_required"),
    Variable("AWS_CONFIG_FILE", "libraries", "boto3", "AWS profiles; an empty file for embedded servers", "~/.aws/config"),
    Variable(
        "AWS_SHARED_CREDENTIALS_FILE",
        "libraries",
        "boto3",
        "credentials of profiles; an empty file for embedded servers",
        "~/.aws/credentials",
    ),
    Variable("NETRC", "libraries", "requests", "passwords of hosts; an empty file for embedded servers", "~/.netrc"),
    Variable("NO_PROXY", "libraries", "boto3, MLflow", "hosts that are reached without a proxy; 127.0.0.1 is added for embedded servers"),
    Variable("no_proxy", "libraries", "boto3, MLflow", "the same; wins over `NO_PROXY`"),
    Variable("MLFLOW_TRACKING_USERNAME", "libraries", "MLflow", "user name for MLflow"),
    Variable("MLFLOW_TRACKING_PASSWORD", "libraries", "MLflow", "password for MLflow", secret=True),
    Variable(TRACKING_TOKEN, "libraries", "MLflow", "bearer token for MLflow; set for embedded servers", secret=True),
    Variable("MLFLOW_RUN_ID", "libraries", "every step", "run that Kubeflow Pipelines' MLflow plugin opened for this task; it is joined"),
    Variable("MLFLOW_HTTP_REQUEST_TIMEOUT", "libraries", "MLflow", "seconds for one request", "20; 10 at most while training"),
    Variable("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "libraries", "MLflow", "retries of one request", "3; 1 at most while training"),
    Variable("MLFLOW_CONFIGURE_LOGGING", "libraries", "MLflow", "a log handler of MLflow's own", "false"),
    Variable("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "libraries", "MLflow", "no addresses on stdout, which is for JSON", "true"),
    Variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "libraries", "MLflow", "progress bars of uploads", "false"),
    Variable("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "libraries", "MLflow", "uploads that bypass the MLflow server", "false"),
    Variable("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "libraries", "MLflow", "downloads that bypass the MLflow server", "false"),
    Variable("KAGGLE_API_TOKEN", "libraries", "kagglehub, in ingest", "token for Kaggle; public datasets need none", secret=True),
    Variable("KAGGLE_USERNAME", "libraries", "kagglehub, in ingest", "user name for Kaggle, with `KAGGLE_KEY` instead of the token"),
    Variable("KAGGLE_KEY", "libraries", "kagglehub, in ingest", "key for Kaggle", secret=True),
    Variable("HF_TOKEN", "libraries", "huggingface-hub, in ingest", "token for the hub; public datasets need none", secret=True),
    Variable("HF_ENDPOINT", "libraries", "huggingface-hub, in ingest", "address of the hub or of a mirror", "https://huggingface.co"),
    Variable("HF_HUB_DISABLE_PROGRESS_BARS", "libraries", "huggingface-hub, in ingest", "no progress bars; set for ingest", "1"),
    Variable("HF_HUB_DISABLE_TELEMETRY", "libraries", "huggingface-hub, in ingest", "no telemetry; set for ingest", "1"),
    Variable("KAGGLEHUB_VERBOSITY", "libraries", "kagglehub, in ingest", "what kagglehub logs", "error"),
    Variable(
        "DOCKER_HOST", "libraries", "run --runner container, doctor", "address of the container engine", "docker's socket, then podman"
    ),
    Variable("KUBECONFIG", "libraries", "train, doctor", "configuration of kubectl, outside a cluster", "~/.kube/config"),
    Variable("KUBERNETES_SERVICE_HOST", "libraries", "train, doctor", "set inside a cluster: the pod's service account is used"),
    Variable("RANK", "libraries", _TORCHRUN, "number of the process among all; torchrun sets it"),
    Variable("LOCAL_RANK", "libraries", _TORCHRUN, "number of the process on its machine; torchrun sets it"),
    Variable("WORLD_SIZE", "libraries", _TORCHRUN, "number of processes; torchrun sets it"),
    Variable("LOCAL_WORLD_SIZE", "libraries", _TORCHRUN, "number of processes on this machine; torchrun sets it"),
    Variable("PET_NNODES", "libraries", "the nodes of a TrainJob", "number of nodes; Kubeflow Trainer sets this and the three below"),
    Variable("PET_NODE_RANK", "libraries", "the nodes of a TrainJob", "number of this node"),
    Variable("PET_MASTER_ADDR", "libraries", "the nodes of a TrainJob", "address of the first node, at which all meet"),
    Variable("PET_MASTER_PORT", "libraries", "the nodes of a TrainJob", "its port"),
    Variable("OMP_NUM_THREADS", "libraries", "numeric libraries", "threads of a process; set to `resources.threads` for ranks"),
    Variable("CUBLAS_WORKSPACE_CONFIG", "libraries", "cuBLAS", "set with `training.deterministic`", ":4096:8"),
    Variable("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "libraries", "torch", "refuse pickles that are not plain weights; always set", "1"),
    Variable("TORCHINDUCTOR_CACHE_DIR", "libraries", "torch", "compiled kernels", "below `CELEBDIT_WORK_DIR`"),
    Variable("TRITON_CACHE_DIR", "libraries", "Triton", "compiled kernels", "below `CELEBDIT_WORK_DIR`"),
    Variable("PATH", "libraries", "every child process", "passed on to all of them; to the decoders of ingest with hardly anything else"),
    Variable("PYTHONPATH", "libraries", "every child process", "child processes get its absolute paths; relative ones are dropped"),
    Variable("PYTHONSAFEPATH", "libraries", "every child process", "no imports from the current folder; always set for them", "1"),
)
"""Every variable that Python code of this project reads or sets for others, and those of docker/compose.yaml."""

SECRETS = frozenset(variable.name for variable in VARIABLES if variable.secret)


def environment_page() -> str:
    """Return docs/environment.md."""
    lines = [
        "# Environment variables",
        "",
        "Addresses and secrets come from the environment only, everything else from the configuration. For example:",
        "",
        "```bash",
        "export CELEBDIT_STORE=s3://bucket/prefix MLFLOW_TRACKING_URI=https://mlflow.example AWS_ENDPOINT_URL=https://s3.example",
        "```",
        "",
        "This page is generated from `components/environment.py`. Values of secret variables are masked in logs, events and errors.",
    ]
    for group, (title, text) in _TITLES.items():
        lines += ["", f"## {title}", "", text, "", "| variable | meaning | default | read by | secret |", "|---|---|---|---|---|"]
        lines += [_row(variable) for variable in VARIABLES if variable.group == group]
    return "\n".join(lines) + "\n"


def _row(variable: Variable) -> str:
    default = variable.default or ""
    secret = "yes" if variable.secret else ""
    return f"| `{variable.name}` | {variable.description} | {default} | {variable.read_by} | {secret} |".replace("  |", " |")
