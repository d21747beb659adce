# The developer and the continuous integration call the same targets.

# cpu | gpu: faiss and onnxruntime for either, which exclude each other.
EXTRA ?= cpu
# What tests need beside it: Milvus Lite asks for faiss-cpu.
TESTS_cpu := dev,milvus-lite
TESTS_gpu := dev
# The benchmark that `make bench` runs, and its arguments.
NAME ?= training
ARGS ?= --quick --json benchmarks/results/$(NAME).json
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed-$(EXTRA)
CHECKED := item training index deploy benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help demo test lint proto bench gpu-check
.DELETE_ON_ERROR:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## a sample shop, trained, indexed, served and searched, in minutes; leaves demo/index.html
	$(PYTHON) -m deploy.demo

test: $(INSTALLED) ## run the tests, two files at a time
	$(PYTHON) -m pytest -n 2 --dist loadfile

gpu-check: $(INSTALLED) ## on a machine with a GPU: each path there against the CPU; elsewhere: what was skipped
	$(PYTHON) -m pytest tests/gpu

lint: $(INSTALLED) ## ruff, mypy --strict, and whether the generated contract is up to date
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy $(wildcard $(CHECKED))
	bash proto/generate.sh --check

proto: ## generate item/v1/ from proto/item/v1/item.proto
	bash proto/generate.sh

bench: $(INSTALLED) ## run one benchmark: make bench NAME=training ARGS="--json FILE"
	$(PYTHON) -m benchmarks.$(NAME) $(ARGS)

# One stamp an extra. The other extra's wheels go first: both provide the modules `faiss` and `onnxruntime`.
$(INSTALLED): pyproject.toml constraints.txt
	python3.11 -m venv .venv
	rm -f .venv/.installed-*
	$(PYTHON) -m pip uninstall --yes --quiet faiss-cpu faiss-gpu onnxruntime onnxruntime-gpu
	$(PYTHON) -m pip install --constraint constraints.txt --editable '.[$(EXTRA),$(TESTS_$(EXTRA))]'
	touch $@
