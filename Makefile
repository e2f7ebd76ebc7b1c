# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
# The first interpreter that is new enough. PYTHON=/path/to/python chooses another: where .venv is of another release already, the
# environment is .venv-3.13, or whichever release it is.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
CONF ?= conf/local.toml
RUN_DATE ?= $(shell date +%F)
FORCE ?=

VENV := .venv
ifneq ($(filter command environment,$(firstword $(origin PYTHON))),)
release = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifeq ($(filter $(call release,$(PYTHON)),$(call release,.venv/bin/python)),)
VENV := $(if $(wildcard .venv/bin/python),.venv-$(call release,$(PYTHON)),.venv)
endif
endif
BIN := $(VENV)/bin
CLI := $(BIN)/recsys-batch
.DEFAULT_GOAL := help
.PHONY: help setup data chaos test test-fast test-slow coverage lint format demo fault-test sizes executor-test check-schedules airflow-test audit-deps protocol package compat cluster-test object-store-test s3a-jars hdfs-jars kafka-jars docs profile bench-retrieval bench-size bench-scoring bench-night bench-incremental bench-ingest bench-freshness bench-refresh bench-training bench-quality bench-plan bench-online soak servers bench-servers bench-snapshot bench-digest clean distclean
# Another Spark's, where the shell has one: pyspark would start that one.
unexport SPARK_HOME PYTHONPATH

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## .venv with everything, a Java, the Delta jars; each only where it is missing. TORCH=cpu takes a build without CUDA
	$(if $(TORCH),@$(BIN)/python tools/install_torch.py $(TORCH))
	@$(BIN)/python tools/fetch_java.py
	@$(BIN)/python tools/fetch_jars.py

$(VENV)/.ready: setup.cfg setup.py recsys_batch/ranking/_score_pairs.c
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, and none is on PATH; PYTHON=/path/to/python names one" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip packaging
	$(if $(TORCH),@$(BIN)/python tools/install_torch.py $(TORCH))
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

data: $(VENV)/.ready ## MovieLens-100K into data/ml-100k (research use only)
	@$(BIN)/python tools/fetch_movielens.py

# Each process has a Spark session of its own; one that is done takes tests from the other.
WORKERS ?= 2
PYTEST = -m pytest --numprocesses $(WORKERS) --dist worksteal

test: setup ## every behaviour, in WORKERS=2 processes; PYTHON=python3.13 on that release, in an environment of its own
	$(BIN)/python $(PYTEST)

test-fast: setup ## the tests that take no Spark session and train no model
	$(BIN)/python $(PYTEST) -m 'not slow and not spark' --ignore tests/model

test-slow: setup kafka-jars hdfs-jars ## what is exhaustive, or starts whole processes: every point of a night where it can die, signals, a browser
	$(BIN)/python $(PYTEST) -m slow

coverage: setup ## what `make test` runs, and the lines that it does not reach
	@rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run $(PYTEST)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --skip-covered

lint: $(VENV)/.ready ## ruff, mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup data ## a whole night on MovieLens-100K: RUN_DATE=YYYY-MM-DD, FORCE=1 to compute a published date again
	$(CLI) ingest --conf $(CONF) --source data/ml-100k --format movielens --holdout 0.2
	$(CLI) train --conf $(CONF)
	$(CLI) nightly --conf $(CONF) --run-date $(RUN_DATE) $(if $(FORCE),--force)
	$(CLI) evaluate --conf $(CONF) --holdout --k 10,20
	$(CLI) show --conf $(CONF) --users 3

fault-test: setup kafka-jars ## SIGKILL for NIGHTS=30 nights and KILLS=20 streams at times of their own; the same command again ends with the same tables
	FAULT_NIGHTS=$(or $(NIGHTS),30) STREAM_KILLS=$(or $(KILLS),20) $(BIN)/python -m pytest -m '' tests/faults tests/stream/test_kills.py

sizes: .venv/.ready ## what each extra installs, in MB, into docs/decisions/0001-extras.md: EXTRA=executor measures that one
	$(BIN)/python tools/extras_sizes.py $(EXTRA) --write

executor-test: setup ## a night on workers that have [executor] alone, without torch, against a full one
	$(BIN)/python tools/executor_test.py

check-schedules: .venv/.ready ## the CronJob and the Databricks bundle against what Kubernetes and Databricks define, in an environment of its own
	$(BIN)/python tools/check_schedules.py

airflow-test: setup ## the DAG in real Airflows, 2.11, 3.0 and the newest, each in an environment of its own: VERSION=2.11.2
	$(BIN)/python tools/airflow_test.py $(VERSION)

chaos: setup ## a server under attack for SECONDS=180, with real clients that go on asking: answers by status
	$(BIN)/python tools/chaos.py $(if $(SECONDS),--seconds $(SECONDS))

audit-deps: setup ## installed packages against known vulnerabilities (pip-audit, in an environment of its own)
	$(BIN)/python tools/audit_deps.py

docs: ## the site out of docs/, into site/ (MkDocs, in an environment of its own)
	@test -x .docs/bin/mkdocs || { $(PYTHON) -m venv .docs && .docs/bin/pip install -qq --disable-pip-version-check 'mkdocs>=1.6,<2'; }
	NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --strict

protocol: $(VENV)/.ready ## the messages of the Open Inference Protocol, generated from their .proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. recsys_batch/online/oip/grpc_predict_v2.proto

package: $(VENV)/.ready ## dist/recsys_batch-VERSION.zip, for spark-submit --py-files
	@$(BIN)/python tools/package.py

compat: setup ## Spark 4.0 to the newest with the Delta releases that fit, each in an environment of its own (.compat); PAIRS='4.1.*:4.3.*'
	$(BIN)/python tools/compat.py $(if $(PAIRS),--pairs $(foreach pair,$(PAIRS),'$(pair)'))

cluster-test: setup package ## a master, two workers, every job by spark-submit, an executor killed; tables as in local mode
	$(BIN)/python tools/cluster_test.py

s3a-jars: $(VENV)/.ready ## what Spark needs for a warehouse in s3a:// (690 MB), into .jars-s3a
	@$(BIN)/python tools/fetch_java.py
	@$(BIN)/python tools/fetch_jars.py --of s3a

kafka-jars: $(VENV)/.ready ## what `stream` needs to read Kafka (11 MB) into .jars-kafka, and a broker for tests (44 MB)
	@$(BIN)/python tools/fetch_java.py
	@$(BIN)/python tools/fetch_jars.py --of kafka --of kafka-broker

hdfs-jars: .venv/.ready ## an HDFS for tests (104 MB), into .jars-hdfs; Spark itself brings what it needs for hdfs://
	@$(BIN)/python tools/fetch_java.py
	@$(BIN)/python tools/fetch_jars.py --of hdfs

STORE ?= s3
object-store-test: setup $(if $(filter hdfs,$(STORE)),hdfs-jars,s3a-jars) ## nights with their warehouse in a store on loopback (STORE=s3 or hdfs); tables as on a local path
	$(BIN)/python tools/object_store_test.py --store $(STORE)

profile: setup ## a night of RUN_DATE once more, every task profiled, and its slowest step opened: STEP=score opens that one
	$(BIN)/python tools/profile_night.py --conf $(CONF) --run-date $(RUN_DATE) $(if $(STEP),--step $(STEP))

USERS ?=
ITEMS ?=
DIM ?=
K ?=
bench_options = $(if $(USERS),--users $(USERS)) $(if $(ITEMS),--items $(ITEMS)) $(if $(DIM),--dim $(DIM)) $(if $(K),--k $(K))

bench-retrieval: setup ## MLlib, exact, ivf and raw faiss on the same factors: USERS= ITEMS= DIM= K= (100000 50000 64 200)
	$(BIN)/python benchmarks/retrieval.py $(bench_options)

bench-size: setup ## generate, then candidates, at a tenth and in full: USERS= ITEMS= DIM= K= (1000000 100000 64 200)
	$(BIN)/python benchmarks/size.py $(bench_options)

bench-scoring: setup ## pairs per second of the score step against the model alone: USERS= ITEMS= DIM= K=
	$(BIN)/python benchmarks/scoring.py $(bench_options)

bench-night: setup ## a whole night beside the build of another commit, and MLlib's candidates alone: USERS= ITEMS= K= (100000 50000 200) BEFORE=COMMIT
	$(BIN)/python benchmarks/night.py $(if $(BEFORE),--before $(BEFORE)) $(bench_options)

bench-incremental: setup ## a night after 1 % of the users did something, against a full one: USERS= ITEMS= K=
	$(BIN)/python benchmarks/incremental.py $(bench_options)

bench-ingest: setup ## daily files, CSV against the build of another commit, and Parquet: BEFORE=COMMIT
	$(BIN)/python benchmarks/ingest.py $(if $(BEFORE),--before $(BEFORE))

bench-freshness: setup kafka-jars ## from an event to a changed answer, by Kafka and by Delta, and a backlog: USERS= ITEMS= K=
	$(BIN)/python benchmarks/freshness.py $(bench_options)

bench-refresh: setup ## the stream refreshing 1 % of the users, against a full night: USERS= ITEMS= K=
	$(BIN)/python benchmarks/refresh.py $(bench_options)

servers: setup ## model servers of others, each in an environment of its own: SERVERS=torchserve (all)
	$(BIN)/python tools/model_servers.py $(SERVERS)

bench-servers: setup servers ## the ranker on other model servers: parity, requests through /v1/rank, what a hop costs, killed in a load
	$(BIN)/python benchmarks/servers.py $(bench_options)

bench-training: setup ## generate, dry run, training on a sample: minutes, peak memory: USERS= ITEMS= EVENTS= MAX_EVENTS= (100000 100000 2000000 all)
	$(BIN)/python benchmarks/training.py $(bench_options) $(if $(EVENTS),--events $(EVENTS)) $(if $(MAX_EVENTS),--max-events $(MAX_EVENTS))

bench-quality: setup data ## what whole nights publish beside EASE, item neighbours, ALS and popularity: ONLY=ml-random,ml-temporal,...
	$(BIN)/python benchmarks/quality.py $(if $(ONLY),--only $(ONLY))

bench-plan: setup ## plans against what happens: nights of two sizes, requests per second: USERS= ITEMS=
	$(BIN)/python benchmarks/plan.py $(bench_options)

bench-online: setup ## our server beside the build of another commit, and others, on the same work: BEFORE=COMMIT PEERS=torchserve,triton
	$(BIN)/python benchmarks/online.py $(if $(BEFORE),--before $(BEFORE)) $(if $(PEERS),--peers $(PEERS)) $(bench_options)

SOAK_SECONDS ?= 600

soak: setup ## serve for SOAK_SECONDS=600 at 70 % of its capacity, snapshots swapping: fails unless memory, descriptors, threads stay flat
	$(BIN)/python benchmarks/soak.py --seconds $(SOAK_SECONDS) $(bench_options)

bench-snapshot: setup ## export-snapshot of a made-up run: USERS= ITEMS= DIM= K= (1000000 100000 64 100)
	$(BIN)/python benchmarks/snapshot.py $(bench_options)

bench-digest: setup ## digest of a made-up run, and the next one: USERS= ITEMS= DIM= K= (1000000 100000 64 20)
	$(BIN)/python benchmarks/digest.py $(bench_options)

clean: ## remove what demo and tests wrote; keep .venv and downloads
	rm -rf data/warehouse data/state data/smoke data/profile .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache spark-warehouse metastore_db derby.log

distclean: clean ## also .venv, Java, jars and MovieLens; other files in data/ are yours and stay
	rm -rf .venv .venv-3.* .compat .airflow .executor .kubernetes .docs site .jars-s3a .jars-hdfs .audit .jars .java .servers data/ml-100k *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rmdir data 2>/dev/null || true
