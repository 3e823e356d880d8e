# Everything here needs Python >= 3.11 with pip and venv, and make; `make quickstart` is the place to start.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another version of torch than the tests' own, and the index that it comes from (empty: pip's own).
PINNED := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= $(PINNED)
TORCH_INDEX ?=
CONSTRAINTS := $(VENV)/constraints.txt
PIP := $(BIN)/pip --disable-pip-version-check install -q -c $(CONSTRAINTS)

.PHONY: help quickstart test test-launch test-peers test-slow test-fuzz test-faults test-soak test-timm-suite lint docs regenerate pin mutation bench-cpu bench-cpu-inference bench-loader clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed  ## install, then train a network on handwritten digits (about two minutes)
	$(BIN)/excite train digits-seresnet20

# worksteal: each worker begins with half of the files, so that what a file's tests share is made once, not twice.
test: $(VENV)/installed-dev  ## install what the tests need and run them
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-launch: $(VENV)/installed-dev  ## launchers, killed runs, every recipe, model, hook and runtime (minutes; CI runs it)
	$(BIN)/python -m pytest -m "heavy and not variation" -n 2 --dist worksteal

test-peers: $(VENV)/installed-dev .peers/installed  ## fetch timm, scikit-learn and Jupyter, and run the tests beside them (minutes; CI runs it)
	EXCITE_PEERS=$(CURDIR)/.peers $(BIN)/python -m pytest -m peers -n 2 --dist worksteal

test-slow: $(VENV)/installed-dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow or heavy or variation"

test-fuzz: $(VENV)/installed-dev  ## 10,000 damaged inputs of every kind (an hour or two; see CONTRIBUTING.md)
	EXCITE_FUZZ_CASES=$${EXCITE_FUZZ_CASES:-10000} $(BIN)/python -m pytest tests/fuzz -n 2 --dist worksteal

test-faults: $(VENV)/installed-dev  ## 50 faults of every kind into real processes; prints a table (hours; see docs/reliability.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(TIMES)

test-soak: $(VENV)/installed-dev  ## an hour of steps, 100 evaluations, 10,000 predictions, more images than memory (MINUTES=60)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(MINUTES)

test-timm-suite: $(VENV)/installed-dev .peers/installed  ## timm's own tests on our networks (long; see CONTRIBUTING.md)
	EXCITE_PEERS=$(CURDIR)/.peers $(BIN)/python tests/timm_suite.py $(SUITE)

lint: $(VENV)/installed-dev  ## style, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-docs  ## build the site into site/, strictly, without a network (a minute the first time)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # no --quiet: it would make no error of warnings

regenerate: $(VENV)/installed-dev .peers/installed  ## rewrite recipes, goldens and tables from the code; then read the diff, and say why
	$(BIN)/python tests/recipes/rewrite.py
	$(BIN)/python tests/gates/rewrite.py
	$(BIN)/python -m excite.models.sizes
	$(BIN)/python -m excite.gates.summary
	$(BIN)/python -m tests.models.make_golden
	$(BIN)/python -m tests.training.make_golden
	$(BIN)/python docs/layers.py
	EXCITE_PEERS=$(CURDIR)/.peers EXCITE_FIXTURES=$${EXCITE_FIXTURES:-$(CURDIR)/../shared/fixtures} \
		$(BIN)/python docs/weights_table.py

pin:  ## rewrite requirements.txt, the hashes of what quickstart installs, after a change of versions (needs uv)
	grep -vE '^(torch|triton)==' constraints.txt > $(VENV)/pins.txt
	echo "torch ; python_version < '3'" > $(VENV)/without.txt
	echo 'setuptools>=77' > $(VENV)/build.in
	sed '/^[a-z]/,$$d' requirements.txt > $(VENV)/pinned.txt
	uv pip compile pyproject.toml $(VENV)/build.in -c $(VENV)/pins.txt --overrides $(VENV)/without.txt --universal \
		--python-version 3.11 --generate-hashes --no-annotate --no-header -q -o $(VENV)/hashes.txt
	cat $(VENV)/hashes.txt >> $(VENV)/pinned.txt
	mv $(VENV)/pinned.txt requirements.txt

mutation: $(VENV)/installed-dev  ## changes that no test notices: make mutation MODULE=src/excite/x.py TESTS=tests/test_x.py
	$(PIP) mutmut
	$(BIN)/python tests/mutate.py $(MODULE) $(TESTS)

bench-cpu: $(VENV)/installed-dev .peers/installed  ## training speed beside timm's; adds rows to benchmarks/results
	$(BIN)/python benchmarks/train_speed.py

bench-loader: $(VENV)/installed-dev .peers/installed .peers/loaders/installed  ## images/s of loaders and decoders beside ours
	$(BIN)/python benchmarks/loader_speed.py $(IMAGES)

bench-cpu-inference: $(VENV)/installed-dev .peers/installed  ## inference speed beside timm's
	$(BIN)/python benchmarks/inference_speed.py

$(VENV)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "excite needs Python >= 3.11; choose one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# Triton's version belongs to torch's: with another torch it is pip's to choose.
$(CONSTRAINTS): $(VENV)/python constraints.txt
	sed -e 's/^torch==.*/torch==$(TORCH)/' $(if $(filter-out $(PINNED),$(TORCH)),-e '/^triton==/d') constraints.txt > $@

# By hash, but for torch, which may come from another index than the rest. PyPI's torch for Linux brings several GB of CUDA;
# without an NVIDIA GPU: make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
$(VENV)/installed: $(VENV)/python pyproject.toml $(CONSTRAINTS) requirements.txt
	$(BIN)/pip --disable-pip-version-check install -q --require-hashes --no-deps -r requirements.txt
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# Not compiled: most of these modules are never imported, and compiling them all takes half a minute.
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --no-compile -e '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --no-compile -e '.[docs]'
	touch $@

# SPDL needs the libraries of FFmpeg besides; without them it is left out.
.peers/loaders/installed: $(VENV)/installed Makefile
	$(BIN)/pip --disable-pip-version-check install -q --no-deps --upgrade --target .peers/loaders simplejpeg==1.9.0 kornia-rs==0.2.0 \
		imagecodecs==2026.3.6 opencv-python-headless==5.0.0.93 spdl-io==0.8.0 nvidia-dali-cuda120==2.4.0 \
		nvidia-nvimgcodec-cu12==0.9.0.20 optree astunparse gast dm-tree six
	touch $@

# timm cannot be imported without torchvision, which does not import beside a CPU build of torch; see benchmarks/peers.py.
# Jupyter (100 MB) has a folder of its own: it brings other copies of what the environment has.
.peers/installed: $(VENV)/installed Makefile
	$(PIP) huggingface_hub
	$(BIN)/pip --disable-pip-version-check install -q --no-deps --upgrade --target .peers timm==1.0.31 torchvision==0.28.0 \
		-c $(CONSTRAINTS) scikit-learn scipy joblib threadpoolctl cloudpickle narwhals
	$(BIN)/pip --disable-pip-version-check install -q --upgrade --target .peers/notebooks -c $(CONSTRAINTS) nbclient==0.11.0 ipykernel==7.4.0
	PYTHONPATH=.peers $(BIN)/python -c 'import sklearn.datasets, sklearn.metrics, scipy.stats'  # nothing else is missing
	touch $@

clean:  ## remove the environment and caches (not the runs)
	rm -rf $(VENV) .peers .pytest_cache .mypy_cache .ruff_cache build site
