PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test check lint proto clean sim-builds

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock setup.py \
		$(wildcard shoal/kernels/*.cpp shoal/kernels/*.h)
	tools/install.sh $(PYTHON) $(VENV)
	touch $@

proto: install
	$(BIN)/python tools/generate_stubs.py
	$(BIN)/python tools/render_docs.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/python tools/render_docs.py --check

check: install
	$(BIN)/pytest tests/unit tests/simulation tests/architecture -m "not slow"

test: install
	$(BIN)/pytest tests

# Worlds of builds from ever new seeds, for ten minutes; prints runs, faults, violations (0).
sim-builds: install
	$(BIN)/python -m tests.simulation.long_builds --seconds 600

demo: install
	$(BIN)/python -m deploy.demo

clean:
	rm -rf $(VENV) build dist *.egg-info

# Benchmarks: JSON and plots go to bench/results. They want the machine for themselves.
# BENCH_DATA is the folder of judged corpora; without it, single and ingest use synthetic vectors.
BENCH_VENV := .bench-venv
BENCH_DATA ?= ../shared/data

.PHONY: bench-peers bench-single bench-quality bench-ingest bench-encoder bench-tokens bench-maxsim \
	bench-colbert bench-colbert-large bench-late-peers bench-late-scale \
	bench-ray-faults bench-overload bench-horizontal

bench-peers: $(BENCH_VENV)/.installed

$(BENCH_VENV)/.installed: bench/peers/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	grep -v '^#' $< | xargs -n 1 $(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check \
		|| echo "not every peer could be installed; the result will say which"
	touch $@

bench-single: install bench-peers
	$(BIN)/python -m bench.single --peers --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

bench-quality: install
	$(BIN)/python -m bench.quality --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

bench-ingest: install
	$(BIN)/python -m bench.ingest --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

bench-encoder: install
	$(BIN)/python -m bench.encoder --data $(BENCH_DATA)

bench-tokens: install
	$(BIN)/python -m bench.tokens --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

bench-maxsim: install
	$(BIN)/python -m bench.maxsim

bench-colbert: install
	$(BIN)/python -m bench.colbert --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

bench-colbert-large: install
	$(BIN)/python -m bench.colbert --data $(BENCH_DATA) --documents 60000
	$(BIN)/python -m bench.page

# The peers of late interaction bring gigabytes of CUDA along, and take an hour to build.
BENCH_LATE := .bench-late
bench-late-peers: install $(BENCH_LATE)/.installed
	$(BIN)/python -m bench.late_peers --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

$(BENCH_LATE)/.installed: bench/late/requirements.txt
	$(PYTHON) -m venv $(BENCH_LATE)
	$(BENCH_LATE)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

bench-late-scale: install
	$(BIN)/python -m bench.late_scale --data $(BENCH_DATA)
	$(BIN)/python -m bench.page

bench-ray-faults: install
	$(BIN)/python -m bench.ray_faults
	$(BIN)/python -m bench.page

bench-overload: install
	$(BIN)/python -m bench.overload
	$(BIN)/python -m bench.page

bench-horizontal: install
	$(BIN)/python -m bench.horizontal
	$(BIN)/python -m bench.page
