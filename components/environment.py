"""The environment variables of the project: the name, reader, default and meaning of each, and the page that lists them.

Promises: pure. A CELEBDIT_* variable that is not in `VARIABLES` is not read anywhere; only `components/settings.py`,
`components/process_settings.py` and `components/command_settings.py` read them. docs/environment.md is `environment_page()`, and a test
compares the two.
"""

from components.environment_variable import CONFIG_MAP, Group, Source, Variable
from components.library_variables import LIBRARY_VARIABLES

STORE = "CELEBDIT_STORE"
MLFLOW = "MLFLOW_TRACKING_URI"
S3_ENDPOINT = "AWS_ENDPOINT_URL"
S3_ENDPOINT_FIRST = "AWS_ENDPOINT_URL_S3"
STORAGE_DEADLINE = "CELEBDIT_STORAGE_DEADLINE_S"
S3_ENCRYPTION = "CELEBDIT_S3_ENCRYPTION"
S3_KMS_KEY_ID = "CELEBDIT_S3_KMS_KEY_ID"
S3_STORAGE_CLASS = "CELEBDIT_S3_STORAGE_CLASS"
S3_REQUEST_PAYER = "CELEBDIT_S3_REQUEST_PAYER"
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
SERVICE_ACCOUNT = "CELEBDIT_SERVICE_ACCOUNT"
LAST_WORDS = "CELEBDIT_LAST_WORDS"
HOME = "CELEBDIT_HOME"
MODEL = "CELEBDIT_MODEL"
WEBHOOK = "CELEBDIT_WEBHOOK_URL"
VERIFY_KEY = "CELEBDIT_VERIFY_KEY"
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
WORKSPACE = "MLFLOW_WORKSPACE"
REGISTRY = "MLFLOW_REGISTRY_URI"
TRACKING_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
MLFLOW_USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
CREDENTIAL_PROVIDERS = (
    *("AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
)
"""Any of these stands for credentials that boto3 finds without the keys."""

_TITLES: dict[Group, tuple[str, str]] = {
    "servers": ("Servers", "Set `CELEBDIT_STORE` and `MLFLOW_TRACKING_URI` together, or neither: `celebdit run` then starts its own."),
    "run": ("A run and its steps", "On Kubernetes the compiled pipeline and the ConfigMap `celebdit-config` set these."),
    "command": ("The command line", "Flags win over these."),
    "internal": ("Set by celebdit itself", "Listed so that a name in a process's environment can be looked up. Do not set them."),
    "compose": ("docker/compose.yaml", "Set them in `docker/.env`; no Python code reads them."),
    "libraries": (
        "Read by libraries",
        (
            "They belong to boto3, MLflow, torchrun, Kubernetes and others. celebdit reads these too, or sets them if they are not set. "
            "Pods get those that the last column names a source for; others of boto3 and MLflow apply to commands and local runs alone."
        ),
    ),
}

VARIABLES: tuple[Variable, ...] = (
    Variable(
        STORE,
        "servers",
        "every step and command",
        "S3 location of datasets and runs, like `s3://bucket/prefix`",
        "embedded server",
        pods=CONFIG_MAP,
    ),
    Variable(
        MLFLOW,
        "servers",
        "every step and command, MLflow",
        "address of the MLflow server, without credentials",
        "embedded server",
        pods=CONFIG_MAP,
    ),
    Variable(
        S3_ENDPOINT, "servers", "every step and command, boto3", "address of the S3 server, like `http://host:9000`", "AWS", pods=CONFIG_MAP
    ),
    Variable(S3_ENDPOINT_FIRST, "servers", "every step and command, boto3", f"the same; wins over `{S3_ENDPOINT}`", pods=CONFIG_MAP),
    Variable(
        STORAGE_DEADLINE,
        "servers",
        "every step and command",
        "seconds for which a call to object storage is retried",
        "300",
        pods=CONFIG_MAP,
    ),
    Variable(
        S3_ENCRYPTION,
        "servers",
        "every step and command",
        "server-side encryption of what is written: `AES256`, `aws:kms` or `aws:kms:dsse`",
        "that of the bucket",
        pods=CONFIG_MAP,
    ),
    Variable(
        S3_KMS_KEY_ID,
        "servers",
        "every step and command",
        "key of KMS to encrypt with; `aws:kms` is then the encryption",
        "the account's key",
        pods=CONFIG_MAP,
    ),
    Variable(
        S3_STORAGE_CLASS,
        "servers",
        "every step and command",
        "storage class of what is written, like `STANDARD_IA`",
        "that of the store",
        pods=CONFIG_MAP,
    ),
    Variable(
        S3_REQUEST_PAYER,
        "servers",
        "every step and command",
        "`requester` for a bucket whose requests and transfers the reader pays",
        pods=CONFIG_MAP,
    ),
    Variable(EXPERIMENT, "run", "every step and command", "name of the MLflow experiment", "celebdit", pods=CONFIG_MAP),
    Variable(WORK_DIR, "run", "every step", "folder for packed datasets, checkpoints and journals", "`$TMPDIR/celebdit`; `.celebdit/work`"),
    Variable(RUN_ID, "run", "every step", "id of the pipeline run; a step without it exits with 2"),
    Variable(RUN_URL, "run", "every step", "address of the pipeline run in Kubeflow Pipelines, a tag of MLflow's runs", f"from `{KFP_UI}`"),
    Variable(KFP_UI, "run", "every step", "address of the Kubeflow Pipelines UI, to which MLflow's runs link", pods=CONFIG_MAP),
    Variable(PRESET, "run", "every step", "name of the preset, a tag of MLflow's runs"),
    Variable(GIT_COMMIT, "run", "every step", "commit of the code, a tag of MLflow's runs; the images set it", "that of the checkout"),
    Variable(IMAGE_DIGEST, "run", "every step", "digest of the step's image, a tag of MLflow's runs"),
    Variable(IMAGE, "run", "train, if `resources.nodes` > 1", "image by digest for the pods of a TrainJob"),
    Variable(NAMESPACE, "run", "train, if `resources.nodes` > 1", "namespace of the step's pod", "that of the service account"),
    Variable(POD, "run", "train, if `resources.nodes` > 1", "name of the step's pod; its workflow becomes the owner of the TrainJob"),
    Variable(SERVICE_ACCOUNT, "run", "train, if `resources.nodes` > 1", "service account of the step's pod, which the nodes run as"),
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
    Variable(
        VERIFY_KEY,
        "command",
        "serve, sample, compare, evaluate, models package, models promote",
        "file with a public key (PEM); a version that its private key did not sign is refused",
        "signatures are not looked at",
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
    *LIBRARY_VARIABLES,
)
"""Every variable that Python code of this project reads or sets for others, and those of docker/compose.yaml."""


def pod_variables(source: Source, step: str | None = None) -> tuple[str, ...]:
    """Return the names of the variables that pods get from `source`: those of one step, or of any."""
    return tuple(
        variable.name
        for variable in VARIABLES
        if variable.pods == source and (step is None or not variable.steps or step in variable.steps)
    )


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
        header = "| variable | meaning | default | read by | secret | in pods from |"
        lines += ["", f"## {title}", "", text, "", header, "|---|---|---|---|---|---|"]
        lines += [_row(variable) for variable in VARIABLES if variable.group == group]
    return "\n".join(lines) + "\n"


def _row(variable: Variable) -> str:
    default = variable.default or ""
    secret = "yes" if variable.secret else ""
    pods = f"`{variable.pods}`" if variable.pods else ""
    if variable.steps:
        pods += f" ({', '.join(variable.steps)})"
    return f"| `{variable.name}` | {variable.description} | {default} | {variable.read_by} | {secret} | {pods} |".replace("  |", " |")
