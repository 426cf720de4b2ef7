#!/bin/sh
# nats.conf takes the passwords from the environment. Of a variable NAME_FILE, as engines and Kubernetes hand secrets
# over, this takes what is in the file.
set -eu
for role in ADMIN OPERATOR SYSTEM GATEWAY LANE DEGRADED SUPERVISOR; do
    name=WARMLANE_NATS_${role}_PASSWORD
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        password=$(cat "$file")
        export "$name=$password"
    fi
done
exec nats-server "$@"
