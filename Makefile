# make run    set everything up and run patches/srcu-vma to a verdict
# make test   all tests that this machine can run
# make help   the rest

SHELL := /bin/bash
VENV := .venv
LAB := $(VENV)/bin/lab
SERIES ?= patches/srcu-vma
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# Installs the packages in $$missing, if there are any.
define INSTALL
if [ -n "$$missing" ]; then \
	if ! command -v apt-get >/dev/null; then \
		echo "install these with your package manager:" $$missing >&2; exit 2; \
	fi; \
	echo "installing:" $$missing >&2; \
	$(SUDO) apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; \
fi
endef

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: run
run: setup ## build, boot and judge $(SERIES) (SERIES=DIR for another)
	$(LAB) run --patch $(SERIES)

.PHONY: test
test: setup test-tools ## all tests: pure, fake, and with real kernels
	$(VENV)/bin/pytest

.PHONY: check
check: setup test-tools ## the tests that need no kernel
	$(VENV)/bin/pytest -m "not vm"

.PHONY: bench
bench: setup ## the benchmarks; prints ratios
	$(VENV)/bin/pip install --quiet --editable '.[bench]'
	for file in benchmarks/*.py; do echo "== $$file"; $(VENV)/bin/python $$file || exit 1; done

.PHONY: setup
setup: $(VENV)/.installed ## virtual environment, and system packages that are missing
	@missing="$$($(LAB) --quiet doctor --packages)"; $(INSTALL)

# What only tests call.
.PHONY: test-tools
test-tools:
	@missing="$$(for name in cpio gdb; do command -v $$name >/dev/null || echo $$name; done)"; $(INSTALL)
	@PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null || ! command -v apt-get >/dev/null || \
		$(SUDO) tests/install-sshd

# apt-get alone can bring what makes a virtual environment; everything else lab doctor names.
$(VENV)/.installed: pyproject.toml
	@python3 -c 'import ensurepip, venv' 2>/dev/null || \
		{ $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; }
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	@touch $@

.PHONY: distclean
distclean: ## remove the virtual environment and tool caches (not the lab's cache: lab clean)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
