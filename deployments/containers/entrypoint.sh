#!/bin/sh
# Reads secrets, then becomes the command: for every variable NAME_FILE that holds a path with a folder `secrets`, as /run/secrets/name, NAME is set to what the
# file says. Other files that a variable may name, as SSL_CERT_FILE, are left alone.
set -eu

for name in $(env | sed -n 's|^\([A-Za-z_][A-Za-z0-9_]*\)_FILE=.*/secrets/.*$|\1|p'); do
    path=
    eval "path=\${${name}_FILE-}"
    # A line of another variable, which only looks like one.
    [ -n "$path" ] || continue
    if ! value=$(cat -- "$path" 2>&1); then
        echo "entrypoint: ${name}_FILE: the secret cannot be read ($value). Does it exist on the host, and is its mode 644? secrets.sh makes it." >&2
        exit 78
    fi
    # An empty password is none to Prefect and vLLM: they would serve everybody.
    if [ -z "$value" ]; then
        echo "entrypoint: ${name}_FILE: the secret $path is empty." >&2
        exit 78
    fi
    export "$name=$value"
    # The program that starts may take a variable that it does not know for a mistake.
    unset "${name}_FILE"
done

exec "$@"
