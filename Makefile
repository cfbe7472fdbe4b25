# make demo | test | check | bench      Everything is installed into .venv on the first call.
PYTHON ?= python3
# The torch that is tested. On a machine with GPUs its wheel brings CUDA along.
TORCH ?= torch==2.13.0
# Processes that run tests side by side, each file in one; a test may start four ranks of its own.
# One more than two cores: tests of hangs wait for their limits, and those on a cluster, all in one process, for Slurm.
TEST_WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-$(shell cat setup.cfg Makefile | cksum | cut -d' ' -f1)

.PHONY: demo test check bench install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/megatune demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The peers table, each case once: a few minutes on two cores. `megatune bench peers` runs three rounds.
bench: install
	$(BIN)/megatune bench peers --rounds 1 --budget 570

install: $(STAMP)

# The stamp is written last: an install that was cut off is taken up again, from a new environment
# when the old one has no working pip.
$(STAMP): setup.cfg Makefile
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[demo,test,check]"
	@rm -f $(VENV)/installed-* && touch $(STAMP)

clean:
	rm -rf $(VENV) runs assets build *.egg-info
