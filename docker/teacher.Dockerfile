# Stage 1: the teacher. `docker build -f docker/teacher.Dockerfile -t tidecache-teacher .`, then
# `docker run --gpus all -v /data:/data tidecache-teacher /data/recipe.toml`.
# With `--build-arg ENGINE=remote-code` for LLaDA, LLaDA2, WeDLM and Dream, whose code wants an older
# transformers than vLLM does.
# flash-attn compiles against the CUDA toolkit: hence the devel image.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/tidecache
ENV PATH=/opt/tidecache/bin:$PATH

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY flows flows
COPY storage_schemas storage_schemas
ARG ENGINE=teacher
# flash-attn builds against the torch that is there, so torch comes first.
RUN pip install --no-cache-dir setuptools wheel packaging ninja \
    && pip install --no-cache-dir ".[${ENGINE},object-store]" \
    && pip install --no-cache-dir --no-build-isolation ".[${ENGINE},flash,object-store]"

RUN useradd --create-home --uid 10001 tidecache
USER tidecache
WORKDIR /home/tidecache
ENTRYPOINT ["tidecache", "teacher-cache"]
CMD ["--help"]
