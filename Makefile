# Two commands are enough on a fresh machine: `make demo` serves the page, `make test` runs all that CI runs.

SHELL  := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
OLDEST := .venv-oldest
# What is imported compiles itself, and of most packages that is little.
PIP    := -m pip install --quiet --disable-pip-version-check --no-compile

export GRADIO_ANALYTICS_ENABLED := False

.PHONY: demo test nightly test-versions check bench figures lint types browser help

help:
	@echo "make demo    install into .venv and serve the page on port $${GRADIO_SERVER_PORT:-7860}"
	@echo "make test    everything that CI runs: lint, types, all tests, the browser included"
	@echo "make test-versions  all tests but the browser's on the oldest versions allowed, and all kernels compiled"
	@echo "make nightly    the full grids of which make test runs a sample"
	@echo "make check   lint, types and the fast tests"
	@echo "make bench   time cluster attention against SDPA on this CPU, into assets/bench/cpu.json"
	@echo "make figures tables and figures of assets/bench, and those of the README, drawn anew"

demo: $(VENV)/.app-installed
	$(PY) app.py

# Processes of one torch thread each, a file at a time, so that what a module shares is made once. Three for
# two cores, since tests of the page wait much; the files come as tests/conftest.py orders them.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest
SHARED := -n 3 --dist loadfile --no-loadscope-reorder

# What is timed comes last, alone. Packages and the browser are installed side by side.
test:
	@$(MAKE) -s -j 2 $(VENV)/.dev-installed browser
	@house=$$(mktemp); $(MAKE) -s lint types > $$house 2>&1 & lint=$$!; failed=0; \
	$(PYTEST) $(SHARED) -m "not nightly" --ignore tests/viz/test_speed.py --durations=15 || failed=1; \
	wait $$lint || failed=1; cat $$house; rm $$house; \
	$(PYTEST) tests/viz/test_speed.py || failed=1; exit $$failed

nightly: $(VENV)/.dev-installed
	$(PYTEST) $(SHARED) -m nightly
	SVG2_EXAMPLES=2000 $(PYTEST) tests/viz/page/test_generated.py

test-versions: $(OLDEST)/.installed $(VENV)/.app-installed
	$(OLDEST)/bin/python -m svg2.bench.versions oldest
	$(PY) -m svg2.bench.versions newest
	$(PY) -m svg2.bench.report

check: $(VENV)/.dev-installed
	@house=$$(mktemp); $(MAKE) -s lint types > $$house 2>&1 & lint=$$!; failed=0; \
	$(PYTEST) $(SHARED) -m "not slow and not gpu and not browser and not nightly" || failed=1; \
	wait $$lint || failed=1; cat $$house; rm $$house; exit $$failed

bench: $(VENV)/.app-installed
	$(PY) -m svg2 bench --suite cpu --out assets/bench/cpu.json
	$(PY) -m svg2.bench.report

figures: $(VENV)/.dev-installed browser
	$(PY) -m svg2.bench.report
	$(PY) -m viz.bench_figures

lint: $(VENV)/.dev-installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.dev-installed
	$(PY) -m pyright --level error

$(PY):
	$(PYTHON) -m venv $(VENV)

# torch goes in first. Its default Linux wheel brings gigabytes of CUDA, so that a machine with no NVIDIA driver
# takes the CPU wheel where PyTorch's own index can be reached.
define install_torch
	@index=; url=https://download.pytorch.org/whl/cpu; \
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null \
	    && $(1) -c "import urllib.request as u; u.urlopen('$$url/torch/', timeout=5)" 2>/dev/null; \
	then index="--extra-index-url $$url"; fi; \
	grep '^torch' requirements.txt | $(1) $(PIP) -r /dev/stdin $$index
endef

$(VENV)/.app-installed: requirements.txt | $(PY)
	$(call install_torch,$(PY))
	$(PY) $(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev-installed: requirements-dev.txt $(VENV)/.app-installed
	$(PY) $(PIP) -r requirements-dev.txt
	@touch $@

# Every lower bound of requirements.txt as it stands there but torch's, and Triton 3.6, which torch 2.11 brings.
$(OLDEST)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(OLDEST)
	$(call install_torch,$(OLDEST)/bin/python)
	sed -E '/^(torch|#)/d; s/^triton;.*/triton==3.6.0/; s/>=([0-9.]+)[^;]*/==\1/' requirements.txt > $(OLDEST)/requirements.txt
	sed -nE '/^(pytest|hypothesis|beartype|playwright|peft)/p' requirements-dev.txt >> $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python $(PIP) -r $(OLDEST)/requirements.txt
	@touch $@

# The browser tests drive a real Chromium. Without one they skip and say so, except under CI=true, where they fail.
browser:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else echo "No Chromium, and none can be installed here: the browser tests will be skipped."; fi
