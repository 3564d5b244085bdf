# make demo        the whole line on this machine, from installation to a summary
# make test        formatting, lint, types and the test suite
# make test-fast   the unit tests alone, in one to two minutes
# make lock        deploy/requirements.*.lock anew: exact versions with hashes for both images; needs uv (pip install uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast lint lock install clean

demo: install
	$(BIN)/flawline demo $(ARGS)

# The unit tests on all cores, then the others two at a time: those start servers, and wait for them most of the time.
# A file stays in one process, so that its tests share its servers. Exit code 5 is "no such test".
test: install lint
	$(BIN)/python -m pytest -m unit -n auto $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "not unit" -n 2 --dist loadfile $(ARGS) || [ $$? = 5 ]

test-fast: install
	$(BIN)/python -m pytest -m unit -n auto $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# For CPUs PyTorch comes from an index of its own, with other files and so other hashes: deploy/Dockerfile names its version.
# On PyPI NVIDIA's libraries and triton come with it, which the image for CPUs does not want.
UNLOCKED := torch torchvision triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl \
	nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra s3 \
	--default-index https://pypi.org/simple --generate-hashes --upgrade --quiet \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28

# What both images need has the same version in both.
lock:
	$(LOCK) deploy/requirements.cpu.in --extra cpu \
		$(addprefix --no-emit-package ,$(UNLOCKED)) --output-file deploy/requirements.cpu.lock
	$(LOCK) deploy/requirements.gpu.in --extra gpu \
		--constraint deploy/requirements.cpu.lock --output-file deploy/requirements.gpu.lock

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 2; }
	@echo "Installing into $(VENV) (2 to 5 minutes, 6 GB; torch is most of it) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[test]'
	@echo "Converting the default backbone once ..."
	$(BIN)/python -c 'from flawline.settings.scorer import ScorerSettings; from scorer.features.conversion import prepare; prepare(ScorerSettings())'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runs
