#!/bin/sh
# Writes what compose.yaml takes from its environment: the profile cpu, and passwords made at random. It leaves what the
# file already holds as it is, so you may run it again: after an upgrade it adds what is new.
#
#   sh ops/deploy/new-env.sh          writes .env, which docker compose reads by itself
#   sh ops/deploy/new-env.sh FILE     for docker compose --env-file FILE
set -eu
umask 077

file=${1:-.env}
touch "$file"
chmod 600 "$file"
# if the last line has no newline, our first line would become part of it
if [ -n "$(tail -c 1 "$file")" ]; then echo >> "$file"; fi

add() {
    grep -q "^$1=" "$file" || printf '%s=%s\n' "$1" "$2" >> "$file"
}

# a letter first: nats-server would read 1e5 as a number
password() {
    printf 'w%s' "$(od -A n -N 24 -t x1 /dev/urandom | tr -d ' \n')"
}

add COMPOSE_PROFILES cpu
for role in ADMIN OPERATOR SYSTEM GATEWAY LANE DEGRADED SUPERVISOR; do
    add "WARMLANE_NATS_${role}_PASSWORD" "$(password)"
done
add WARMLANE_GRAFANA_PASSWORD "$(password)"
echo "$file has everything that compose.yaml asks for; only its owner can read it" >&2
