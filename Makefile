# Two commands for a newcomer: `make demo` and `make test`. Both install what they need.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: install demo test test-all fuzz lint docs audit sbom bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "terrafm needs Python 3.11 or later: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]' || \
		$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/terrafm demo --output demo

# Two processes: half of a fast test's time is one process that starts.
test: install
	$(PYTEST) -m "not slow" -n 2 --dist loadfile

# The slow ones disturb processes and measure what is disturbed: one after the other.
test-all: test
	$(PYTEST) -m slow

# Mutated files into every reader; a finding's files stay in fuzz/ and end it with an error.
COUNT ?= 100000
SEED ?= 1
fuzz: install
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python tests/security/fuzzing/fuzz.py \
		--count $(COUNT) --seed $(SEED) --keep fuzz

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r terrafm ray_jobs tuning benchmarks cluster

# The pages as a website in build/docs, which opens from the disk. A warning is an error, but not
# with --quiet. The variable keeps the theme's note about MkDocs 2 out of the log.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open build/docs/index.html"

# Known holes of the images' packages and of what is installed; asks an advisory service. One that
# cannot be mended goes in here as --ignore-vuln ID, and into docs/security.md with the reason.
EXPLAINED :=
audit: install
	$(BIN)/pip-audit $(EXPLAINED) --requirement cluster/requirements.txt --no-deps --disable-pip
	$(BIN)/pip-audit $(EXPLAINED) --skip-editable

# A list of what the images hold, in CycloneDX, from the lock file.
sbom: install
	$(BIN)/cyclonedx-py requirements cluster/requirements.txt --pyproject pyproject.toml \
	  --output-reproducible --output-file sbom.cdx.json

# JSON lines on standard output, progress on standard error; benchmarks/README.md says what is left out.
BENCH := OMP_NUM_THREADS=1 $(BIN)/python benchmarks
bench: install
	@$(BENCH)/shard_size.py --json
	@$(BENCH)/decode.py --json
	@$(BENCH)/plan.py --json --rounds 1
	@$(BENCH)/stream.py --json --rounds 1 --against plain
	@$(BENCH)/step.py --json
	@$(BENCH)/overhead.py --json --rounds 1
	@$(BENCH)/scaling.py --json

clean:
	rm -rf .venv demo build *.egg-info
