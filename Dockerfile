# bicot with all it needs: the same image for Ray's head and workers, and for the launcher.
#
#   docker build -t bicot:cpu .                                                             CPU, for a try
#   docker build -t YOUR-REGISTRY/bicot:gpu --build-arg EXTRA=gpu \
#       --build-arg BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04 .                       GPUs
#
# The GPU base has nvcc, which DeepSpeed and vLLM call to compile kernels on first use.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG EXTRA=cpu
# For builds behind a mirror, from a folder of wheels, or behind a proxy with a certificate of its own.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG SSL_CERT_FILE
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN if ! python3 -m venv --help >/dev/null 2>&1 || ! python3 -m ensurepip --version >/dev/null 2>&1; then \
        apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-venv && \
        rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /opt/bicot
# Only what says which packages there are, so that a change of the code keeps this layer.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY scripts/setup.sh scripts/setup.sh
RUN scripts/setup.sh "$EXTRA" dependencies

FROM ${BASE_IMAGE}
ARG REVISION=unknown
ARG PIP_INDEX_URL
ARG SSL_CERT_FILE
LABEL org.opencontainers.image.title="bicot" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# wget is for KubeRay's probes; libnuma is vLLM's, on CPUs; nfs mounts belong to the host. Login shells, which `ray up` and
# KubeRay may start, forget ENV's PATH: hence the profile.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates libnuma1 openssh-client rsync wget && \
    if ! command -v python3 >/dev/null; then apt-get install -y --no-install-recommends python3; fi && \
    rm -rf /var/lib/apt/lists/* && \
    if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi && \
    useradd --create-home --uid 1000 --gid 100 --shell /bin/bash ray && \
    echo "export PATH=/opt/bicot/.venv/bin:\$PATH" >/etc/profile.d/bicot.sh
COPY --from=build --chown=1000:100 /opt/bicot /opt/bicot
COPY --chown=1000:100 . /opt/bicot
WORKDIR /opt/bicot
RUN .venv/bin/uv pip install --python .venv/bin/python --no-deps --editable . && chown 1000:100 /opt/bicot
ENV PATH=/opt/bicot/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    DO_NOT_TRACK=1
USER 1000:100
# No entry point: KubeRay, `ray up` and SkyPilot run commands of their own.
CMD ["python", "-m", "cluster.launch", "--help"]
