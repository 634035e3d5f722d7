.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start the dashboard on http://127.0.0.1:8000 (HOST, PORT and FLEET_DATA_DIR change it)
	@tools/bootstrap.sh
	@exec $(PYTHON) manage.py serve

test: lint ## Check everything: style, types, templates, migrations, tests, browser tests
	@$(PYTHON) tools/suite.py

lint: ## Check style, types, templates and migrations
	@tools/bootstrap.sh --dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	find templates workflows checkpoints_app -name '*.html' -print0 | xargs -0r .venv/bin/djade --check --target-version 6.1
	$(PYTHON) manage.py check
	$(PYTHON) manage.py makemigrations --check --dry-run

bench: ## Measure against the peers and write benchmarks/results.json
	@tools/bootstrap.sh --bench
	$(PYTHON) -m benchmarks

.PHONY: help run test lint bench
