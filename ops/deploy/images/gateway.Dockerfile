# Everything but the workers: gateway, provision, and the commands of an operator. No torch.
#
#   docker build --file ops/deploy/images/gateway.Dockerfile --tag warmlane-gateway:0.1.0 .
FROM python:3.11.14-slim-bookworm AS build

# More arguments for pip, such as an index of your own, like PIP_ARGS of the Makefile.
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CACHE_DIR=/pip-cache
WORKDIR /build
# without pip: the image does not need it, and it would be one more thing to attack
RUN python -m venv --without-pip /venv

# Dependencies first, without our own packages: this layer stays as long as they do, whatever changes in the source.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
needed = project['dependencies'] + project['optional-dependencies']['kubernetes']; \
print(*(each for each in needed if not each.startswith('warmlane-')), sep='\n')" > requirements.txt
# hadolint ignore=SC2086  # several words
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m pip --python /venv/bin/python install --constraint constraints.txt ${PIP_ARGS} --requirement requirements.txt

# Our own packages go into a folder of their own: a change of the source makes a layer of a few MB on top of that one.
FROM build AS ours
COPY . .
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m pip --python /venv/bin/python install --no-deps --prefix /ours ${PIP_ARGS} ./clients/python .

FROM python:3.11.14-slim-bookworm

# A new volume takes the owner of the folder that it is mounted on.
RUN groupadd --gid 10001 warmlane \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin warmlane \
    && install -d -o 10001 -g 10001 /data /data/artifacts /data/keys \
    && rm -rf /usr/local/lib/python3.11/site-packages/pip* /usr/local/lib/python3.11/site-packages/setuptools* \
        /usr/local/lib/python3.11/site-packages/wheel* /usr/local/lib/python3.11/ensurepip
COPY --from=build /venv /venv
COPY --from=ours /ours /venv
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

ARG REVISION=""
LABEL org.opencontainers.image.title="Warmlane: gateway, provision and the commands of an operator" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-m", "ops.commands.healthcheck", "http://127.0.0.1:8000/healthz"]
EXPOSE 8000
ENTRYPOINT ["warmlane"]
CMD ["gateway"]
