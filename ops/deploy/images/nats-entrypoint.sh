#!/bin/sh
# nats.conf takes the passwords from the environment. Container engines and Kubernetes pass a secret as a file: if
# NAME_FILE names one, this script sets NAME to what the file holds.
set -eu

refuse() {
    echo "$1" >&2
    exit 1
}

for role in ADMIN OPERATOR SYSTEM GATEWAY LANE DEGRADED SUPERVISOR; do
    name=WARMLANE_NATS_${role}_PASSWORD
    eval "file=\${${name}_FILE:-}; given=\${$name:-}"
    [ -n "$file" ] || continue
    [ -z "$given" ] || refuse "$name and ${name}_FILE are both set; keep one of them"
    password=$(cat "$file") || refuse "${name}_FILE: $file cannot be read"
    [ -n "$password" ] || refuse "${name}_FILE: $file is empty; write the password into it"
    export "$name=$password"
done
exec nats-server "$@"
