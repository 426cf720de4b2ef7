# Lanes, degraded workers and their supervisor: the gateway's image, and torch.
#
#   docker build --file ops/deploy/images/worker.Dockerfile --tag warmlane-worker-gpu:0.1.0 .
#
# By default, pip takes the build of torch that runs on NVIDIA cards. For the CPU build, which is far smaller:
#
#   docker build … --build-arg PIP_ARGS='--extra-index-url URL' .
#
# where URL is the index that PyTorch's "Get started" page shows for pip and CPU.
FROM python:3.11.14-slim-bookworm AS build

ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CACHE_DIR=/pip-cache
WORKDIR /build
# without pip: the image does not need it, and it would be one more thing to attack
RUN python -m venv --without-pip /venv

# Dependencies first, without our own packages: this layer of several GB stays as long as they do, whatever changes in
# the source.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*(each for each in project['dependencies'] if not each.startswith('warmlane-')), *project['optional-dependencies']['worker'], sep='\n')" > requirements.txt
# hadolint ignore=SC2086  # several words
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m pip --python /venv/bin/python install --constraint constraints.txt ${PIP_ARGS} --requirement requirements.txt \
    && rm -rf /venv/lib/python3.11/site-packages/torch/test /venv/lib/python3.11/site-packages/torch/include

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
# The allocator's settings are FR-010. A check for CUDA must not start CUDA before the host forks. Libraries keep their
# caches in /tmp: nothing else in the container is writable. NVML, which proves a release, needs `utility`.
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTORCH_ALLOC_CONF=expandable_segments:True,pinned_max_round_threshold_mb:1 \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,pinned_max_round_threshold_mb:1 \
    PYTORCH_NVML_BASED_CUDA_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ARG REVISION=""
LABEL org.opencontainers.image.title="Warmlane: lanes, degraded workers and their supervisor" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
# For a worker with `--metrics-port 9464`, as compose.yaml and the chart start it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-m", "ops.commands.healthcheck", "http://127.0.0.1:9464/livez"]
ENTRYPOINT ["warmlane"]
CMD ["lane", "--help"]
