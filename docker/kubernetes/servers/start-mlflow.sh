#!/bin/sh
# Start MLflow with authentication on. Everything secret comes by environment and goes into a file that only this user can read; nothing of
# it is on a command line. Needs MLFLOW_ADMIN_PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY, and POSTGRES_PASSWORD of the server at
# POSTGRES_ADDRESS, which is postgres:5432 unless you say otherwise; for another database, MLFLOW_BACKEND_STORE_URI instead. A database that
# does not answer is waited for: POSTGRES_WAIT_S seconds (120; 0: it is not looked for). The driver is named because SQLAlchemy 2.1 looks for
# another one than the image has.
set -eu
# In a namespace with Services called mlflow, postgres or s3, Kubernetes sets variables like MLFLOW_PORT=tcp://10.0.0.1:5000, which MLflow
# reads as its own.
for name in $(env | sed -n 's/^\(\(MLFLOW\|POSTGRES\|S3\)_[A-Z0-9_]*\)=tcp:\/\/.*/\1/p'); do
    unset "$name"
done
# They become part of an address and of an ini file, where other characters mean something.
for name in POSTGRES_PASSWORD MLFLOW_ADMIN_PASSWORD; do
    eval "value=\${$name:-}"
    case $value in *[!A-Za-z0-9._~-]*)
        echo "start-mlflow: $name may have letters, digits and ._~- alone" >&2
        exit 2
    esac
done
if [ -n "${POSTGRES_PASSWORD:-}" ]; then
    : "${MLFLOW_BACKEND_STORE_URI:=postgresql+psycopg2://mlflow:$POSTGRES_PASSWORD@${POSTGRES_ADDRESS:-postgres:5432}/mlflow}"
fi
for name in MLFLOW_BACKEND_STORE_URI MLFLOW_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_ARTIFACTS; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then
        echo "start-mlflow: $name is not set, and MLflow is not started without it (docker/kubernetes/new-secrets.sh makes the secrets)" >&2
        exit 2
    fi
done
if [ "${#MLFLOW_ADMIN_PASSWORD}" -lt 12 ]; then
    echo "start-mlflow: MLFLOW_ADMIN_PASSWORD must have 12 characters or more" >&2
    exit 2
fi
# MLflow would end at once if its database does not answer yet. A refused password does not get better by waiting.
export MLFLOW_BACKEND_STORE_URI
python3 - <<'PYTHON'
import os, sys, time
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

wait_s, started_s = float(os.environ.get("POSTGRES_WAIT_S", "120")), time.monotonic()
engine = create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"])
while wait_s:
    try:
        engine.connect().close()
        break
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
    if "authentication failed" in reason:
        sys.exit(f"start-mlflow: the database refuses the password: {reason}")
    if time.monotonic() - started_s > wait_s:
        sys.exit(f"start-mlflow: the database did not answer within {wait_s:g} s: {reason}")
    print(f"start-mlflow: waiting for the database: {reason}", file=sys.stderr, flush=True)
    time.sleep(2)
PYTHON
umask 077
# Checking a password takes a tenth of a second of processor time, at every request of a training; so one that was right is believed for 30 s.
folder=$(mktemp -d)
MLFLOW_AUTH_CONFIG_PATH=$folder/basic_auth.ini
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $MLFLOW_BACKEND_STORE_URI
admin_username = ${MLFLOW_ADMIN_USERNAME:-admin}
admin_password = $MLFLOW_ADMIN_PASSWORD
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 30
INI
export MLFLOW_AUTH_CONFIG_PATH
unset MLFLOW_ADMIN_PASSWORD POSTGRES_PASSWORD
exec mlflow server --app-name basic-auth \
    --host "${MLFLOW_LISTEN:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" \
    --artifacts-destination "$MLFLOW_ARTIFACTS" --allowed-hosts "${MLFLOW_HOSTS:-localhost,localhost:*}"
