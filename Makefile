# Everything a reader or a developer needs. `make` alone lists the commands.
#
# Each command first brings .venv up to date (tools/bootstrap.py), which takes no time when nothing
# changed. All paths here are relative, so that a checkout in "a folder with spaces" works.

.DEFAULT_GOAL := help
SCRIPT_TESTS := $(wildcard tests/js/*.test.mjs)

.PHONY: help lab test test-versions sync lint lint-examples lint-types lint-text notebooks js \
  pytest site-test export site site-serve pdf release reproduce bench lock clean setup check-python

# The Python that .venv is made with; an explicit PYTHON=... also replaces a .venv made by another.
ifneq ($(PYTHON),)
EXACT := --exact
else
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$p" && exit; \
  done; echo python3)
endif

VENV_PYTHON := .venv/bin/python
TORCH := 2.13.0
PORT ?= 8000
LAB_IP ?= 127.0.0.1
UV ?= uv
# So that `make test` can end with the slowest, the seconds of each test are kept.
TIMED = --durations=10 --durations-min=1 --junitxml=.cache/times/$(1).xml

# A PYTHONPATH of the user's would let packages from elsewhere into .venv.
unexport PYTHONPATH PYTHONHOME

help: ## list these commands
	@echo "make COMMAND, where COMMAND is one of"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 17
	@echo "PYTHON=python3.12 chooses the Python; LAB_ARGS=, PYTEST_ARGS=, NOTEBOOK_ARGS= pass arguments on"

# LAB_IP=0.0.0.0 lets other machines in, which a container needs: its own machine is another one.
lab: setup ## open the front page of the book in JupyterLab, on this machine only
	@# As root, as in a container, JupyterLab starts only when told to.
	@test "$$(id -u)" != 0 || root=--allow-root; \
	exec $(VENV_PYTHON) -m jupyterlab --ServerApp.ip=$(LAB_IP) \
	  --LabApp.default_url=/lab/tree/index.ipynb $$root nbs $(LAB_ARGS)

test: setup ## check that everything holds: the six commands below, in turn
	@rm -rf .cache/times; failed=; \
	for part in sync lint notebooks js pytest site-test; do \
	  echo; echo "== $$part"; \
	  $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	echo; $(VENV_PYTHON) tools/slowest.py .cache/times; echo; \
	if test -n "$$failed"; then echo "FAILED:$$failed"; exit 1; fi; \
	echo "All tests passed."

# VERSIONS="3.11:2.13.0 3.13:" chooses others, PYTHONS="/a/python3.11 /b/python3.13" where they are.
test-versions: setup ## run the tests on the oldest and the newest Python and torch (installs them)
	@$(VENV_PYTHON) tools/versions.py --pythons="$(PYTHONS)" --pytest-args="$(PYTEST_ARGS)" $(VERSIONS)

sync: setup ## check that notebooks are clean and the library is what they export
	@$(VENV_PYTHON) tools/check_sync.py

lint: setup ## check style, the order of the book, types, and that the examples of docstrings run
	@# Two at a time, the longest first; what each prints stays together where make can do that.
	@$(MAKE) --no-print-directory --keep-going -j 2 \
	  $(if $(filter output-sync,$(.FEATURES)),--output-sync) lint-examples lint-types lint-text

lint-examples:
	@$(VENV_PYTHON) tools/run_examples.py

lint-types:
	@$(VENV_PYTHON) -m mypy

lint-text:
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) tools/check_style.py
	@$(VENV_PYTHON) tools/check_book.py

notebooks: setup ## execute every notebook in a fresh kernel
	@$(VENV_PYTHON) tools/run_notebooks.py --keep .cache/executed --times .cache/times/notebooks.txt \
	  $(NOTEBOOK_ARGS)

js: ## test the scripts of the live figures (needs node)
	@if command -v node >/dev/null; then node --test $(SCRIPT_TESTS); \
	elif test -n "$$METALIT_NEED_BROWSER"; then echo "error: node is not installed" >&2; exit 1; \
	else echo "skipped: node is not installed (nodejs.org, or apt-get install nodejs)"; fi

pytest: setup ## run the tests in tests/, two at a time
	@$(VENV_PYTHON) -m pytest -n 2 --dist worksteal $(call TIMED,pytest) $(PYTEST_ARGS)

site-test: setup ## build the site, then move and read it in a real browser (needs Chromium)
	@if $(VENV_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  $(MAKE) --no-print-directory site && \
	  $(VENV_PYTHON) -m pytest -n 2 --dist loadgroup tests/browser \
	    $(call TIMED,browser) $(PYTEST_ARGS); \
	else echo "skipped: the site is built on Python 3.11 or newer"; fi

export: setup ## clean the notebooks, then write the library from them
	@$(VENV_PYTHON) tools/clean_notebooks.py
	@$(VENV_PYTHON) -c "from nbdev.doclinks import nbdev_export; nbdev_export()"

site: setup ## execute the book where it changed, build it into _site/, check what was built
	@$(VENV_PYTHON) -c 'import sphinx_book_theme, sphinx_sitemap, notfound' 2>/dev/null || \
	  $(VENV_PYTHON) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[site]'
	@$(VENV_PYTHON) tools/run_notebooks.py --keep .cache/executed --reuse $(NOTEBOOK_ARGS)
	@$(VENV_PYTHON) tools/build_site.py
	@$(VENV_PYTHON) tools/check_site.py

site-serve: setup ## show the built site on this machine (PORT=8000)
	@test -f _site/index.html || { echo "error: there is no site yet: make site" >&2; exit 1; }
	@exec $(VENV_PYTHON) -m http.server $(PORT) --bind 127.0.0.1 --directory _site

# PDF_ARGS="1_idea 2_trial" makes these parts alone.
pdf: setup ## print the built site, a PDF for each part of the book, into dist/pdf (needs Chromium)
	@$(VENV_PYTHON) tools/make_pdf.py $(PDF_ARGS)

# RELEASE_ARGS="--no-tests --light" leaves out what takes long, PYTHONS="/a/python3.12 …" adds some.
release: setup ## make and check all that a release is made of, in dist/; it publishes nothing
	@$(VENV_PYTHON) tools/release.py --pythons="$(PYTHONS)" $(RELEASE_ARGS)

reproduce: setup ## train the paper's MAML on sinusoids, write its figures to results/
	$(VENV_PYTHON) -m reproduce.sinusoids $(REPRODUCE_ARGS)

bench: setup ## time meta-steps, whole runs and parts, some against other libraries (installs them)
	@$(VENV_PYTHON) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[bench]'
	$(VENV_PYTHON) -m benchmarks $(BENCH_ARGS)

lock: ## choose the pinned releases anew, as settings.ini asks (LOCK_ARGS=--upgrade: the newest)
	@command -v "$(UV)" >/dev/null || { echo "error: make lock needs uv: pip install uv" >&2; exit 1; }
	@# The pins must hold for every user: no private index, no build of torch for one device.
	printf 'torch==$(TORCH)\n' | $(UV) --no-config pip compile setup.py --all-extras \
	  --constraints /dev/stdin --universal --python-version 3.10 --no-annotate --quiet \
	  --custom-compile-command 'make lock' $(LOCK_ARGS) -o constraints.txt

clean: ## remove .venv and everything else that can be made again
	rm -rf .venv .venv.old build dist metalit.egg-info .pytest_cache .ruff_cache .cache _site
	find . -name .git -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	  -type d -prune -exec rm -rf {} +

setup: check-python
	@"$(PYTHON)" tools/bootstrap.py $(EXACT)

check-python:
	@"$(PYTHON)" -c '' >/dev/null 2>&1 || { \
	  echo "error: no Python starts under the name '$(PYTHON)'." >&2; \
	  echo "Install Python 3.10 or newer, or name the one to use: make lab PYTHON=python3.12" >&2; \
	  exit 1; }
