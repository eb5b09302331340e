# Stage 1: the teacher, and all of tidecache. docs/containers.md says how to build and run it.
# vLLM's wheels and torch's are built for CUDA 13.0, and flash-attn is compiled with the same: hence
# the devel image, whose compiler vLLM's kernels also ask for when they are first used.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# Ubuntu's mirrors keep no old versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 tidecache \
    && python3 -m venv /opt/tidecache
ENV PATH=/opt/tidecache/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /src
# `remote-code` for LLaDA, LLaDA2, WeDLM and Dream, whose code wants an older transformers than vLLM.
ARG ENGINE=teacher
COPY pyproject.toml docker/constraints/${ENGINE}.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md LICENSE \
    && pip install -c ${ENGINE}.txt ".[${ENGINE},dask,object-store]"
# Compiled against the torch that is there: for an hour or more, with some 4 GB for each job.
ARG MAX_JOBS=4
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c ${ENGINE}.txt setuptools wheel packaging ninja psutil \
    && pip install -c ${ENGINE}.txt --no-build-isolation flash-attn
COPY README.md LICENSE ./
COPY storage_schemas storage_schemas
COPY flows flows
COPY pipeline pipeline
# Editable: a deployment's flows are read from /src, and there is one copy of them.
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --editable .

USER 10001:10001
WORKDIR /home/tidecache
ENTRYPOINT ["tidecache"]
CMD ["--help"]
