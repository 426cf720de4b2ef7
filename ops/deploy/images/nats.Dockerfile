# The official nats-server, as a user that is not root. The version is the one that the tests run with.
FROM nats:2.15.1-alpine3.22

# A new volume takes the owner of the folder that it is mounted on.
RUN install -d -o 10001 -g 10001 /data \
    && mkdir -p /etc/warmlane
# nats.conf is in the image, not mounted: a container would keep the old file after git has replaced it.
COPY nats.conf /etc/warmlane/warmlane.conf
COPY ops/deploy/images/nats.conf /etc/warmlane/nats.conf
COPY --chmod=755 ops/deploy/images/nats-entrypoint.sh /usr/local/bin/warmlane-nats
LABEL org.opencontainers.image.title="Warmlane: nats-server with its users and limits" \
    org.opencontainers.image.version="0.1.0"

USER 10001:10001
ENTRYPOINT ["warmlane-nats"]
CMD ["-c", "/etc/warmlane/nats.conf", "-a", "0.0.0.0", "-p", "4222", "-sd", "/data"]
HEALTHCHECK --interval=2s --timeout=5s --retries=30 \
    CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8222/healthz"]
