# Stage 2: the student, from the cache alone. docs/containers.md says how to build and run it.
# student.Dockerfile.dockerignore leaves the teacher's code out; the last step proves the split.
FROM python:3.11.15-slim-bookworm

# A compiler: flex attention is compiled when a GPU first needs it.
# Debian's mirrors keep no old versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 tidecache
ENV PYTHONUNBUFFERED=1

WORKDIR /src
# What it depends on, apart from its code, which changes more often.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md LICENSE \
    && pip install -c constraints.txt ".[lora,object-store]"
COPY README.md LICENSE ./
COPY storage_schemas storage_schemas
COPY flows flows
COPY pipeline pipeline
# Editable: a deployment's flows are read from /src, and there is one copy of them.
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --editable .
RUN python -c "from importlib.util import find_spec as find; \
    found = [name for name in ('vllm', 'flash_attn', 'pipeline.teacher', 'pipeline.fidelity') if find(name)]; \
    assert not found, found"

USER 10001:10001
WORKDIR /home/tidecache
ENTRYPOINT ["tidecache"]
CMD ["--help"]
