#!/bin/sh
# Make the secrets of an overlay, or of docker/compose.yaml: new-secrets.sh FOLDER. Files that exist are kept, so that doing it again is
# harmless. The S3 keys are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (temporary ones with AWS_SESSION_TOKEN), or invented where
# the S3 server is our own; those of Kaggle from KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, and left out where the environment has
# none: public datasets need none.
set -eu
folder=${1:?"usage: new-secrets.sh FOLDER, like docker/kubernetes/overlays/development/secrets"}
[ -d "$folder" ] || { echo "new-secrets: $folder is not a folder" >&2; exit 2; }
random() { od -An -vtx1 -N24 /dev/urandom | tr -d ' \n'; }
umask 077
keep() { if [ -e "$folder/$1" ]; then echo "kept $folder/$1"; return 0; fi; return 1; }
if ! keep s3.env; then
    case $folder in
        *production*) : "${AWS_ACCESS_KEY_ID:?set it to the key of your object storage}" "${AWS_SECRET_ACCESS_KEY:?set it too}" ;;
    esac
    printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "${AWS_ACCESS_KEY_ID:-celebdit-$(random | cut -c1-12)}" "${AWS_SECRET_ACCESS_KEY:-$(random)}" > "$folder/s3.env"
    if [ -n "${AWS_SESSION_TOKEN:-}" ]; then printf 'AWS_SESSION_TOKEN=%s\n' "$AWS_SESSION_TOKEN" >> "$folder/s3.env"; fi
    echo "made $folder/s3.env"
fi
if keep mlflow-server.env; then
    keep mlflow-client.env || { echo "new-secrets: mlflow-server.env is there and mlflow-client.env is not: write it by hand" >&2; exit 2; }
else
    password=$(random)
    printf 'POSTGRES_PASSWORD=%s\nMLFLOW_ADMIN_PASSWORD=%s\nMLFLOW_FLASK_SERVER_SECRET_KEY=%s\n' "$(random)" "$password" "$(random)" > "$folder/mlflow-server.env"
    printf 'MLFLOW_TRACKING_USERNAME=admin\nMLFLOW_TRACKING_PASSWORD=%s\n' "$password" > "$folder/mlflow-client.env"
    echo "made $folder/mlflow-server.env and mlflow-client.env"
fi
# optional FILE VARIABLE...: write what the environment has of these variables, which may be nothing.
optional() {
    file=$1
    shift
    if [ ! -e "$folder/$file.template" ] || keep "$file"; then return; fi
    : > "$folder/$file"
    for name in "$@"; do
        eval "value=\${$name:-}"
        if [ -n "$value" ]; then printf '%s=%s\n' "$name" "$value" >> "$folder/$file"; fi
    done
    echo "made $folder/$file$([ -s "$folder/$file" ] || echo ', empty')"
}
optional kaggle.env KAGGLE_API_TOKEN KAGGLE_USERNAME KAGGLE_KEY
optional hub.env HF_TOKEN
