# Stage 2: the student, from the cache alone; no teacher, no vLLM. `docker build -f
# docker/student.Dockerfile -t tidecache-student .`, then `docker run --gpus all -v /data:/data
# tidecache-student /data/recipe.toml`.
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY flows flows
COPY storage_schemas storage_schemas
RUN pip install --no-cache-dir -c constraints.txt ".[object-store]"

RUN useradd --create-home --uid 10001 tidecache
USER tidecache
WORKDIR /home/tidecache
ENTRYPOINT ["tidecache", "student-train"]
CMD ["--help"]
