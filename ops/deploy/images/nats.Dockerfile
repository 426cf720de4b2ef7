# The official nats-server, as a user that is not root. The version is the one that the tests run with.
FROM nats:2.15.1-alpine3.22

# A new volume takes the owner of the folder that it is mounted on.
RUN install -d -o 10001 -g 10001 /data

USER 10001:10001
