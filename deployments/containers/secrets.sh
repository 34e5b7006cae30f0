#!/bin/sh
# Makes the secrets that are missing, and changes none: deployments/containers/secrets.sh
set -eu

folder=$(dirname "$0")/secrets
# Containers read the files as users that the host does not know, so everybody may read them; nobody else on the host gets past the folder.
mkdir -p "$folder"
chmod 700 "$folder"

make() {
    [ -s "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"
    chmod 644 "$folder/$1"
}

for name in database_password prefect_password reports_token captioner_key s3_secret_key; do
    make "$name" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
done
# The same password as Prefect wants it, and beside it as Prometheus does.
make prefect_auth "gsec:$(cat "$folder/prefect_password")"
