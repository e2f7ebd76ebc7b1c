#!/usr/bin/env bash
# mlflow 3.17.2, sqlite store: deleting a model version deletes its aliases without a word, and an alias that is not set is said to be an
# invalid parameter.
#
# get_model_version_by_alias answers RESOURCE_DOES_NOT_EXIST where the model is unknown, as one expects, but INVALID_PARAMETER_VALUE where the
# model is there and the alias is not: the code that a malformed name gets. Who asks "is there a champion?" by error code takes a model without
# one for a fault, or, by catching both, a malformed name for "there is none". And after delete_model_version(champion) the answer is the same as
# if nobody had ever been champion: what the alias named is nowhere. Ask get_registered_model(name).aliases instead, which is a plain dict, and
# remember by a tag of the model what the alias was set to.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'mlflow-skinny==3.17.2' 'sqlalchemy==2.1.9' 'alembic==1.20.1'
cd "$folder"
MLFLOW_DISABLE_TELEMETRY=true "$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)
client = MlflowClient(tracking_uri="sqlite:///mlflow.db", registry_uri="sqlite:///mlflow.db")


def look_up(model: str, alias: str) -> str:
    try:
        return f"version {client.get_model_version_by_alias(model, alias).version}"
    except MlflowException as error:
        return error.error_code


seen = {"the model is unknown": look_up("ranker", "champion")}
client.create_registered_model("ranker")
seen["the alias was never set"] = look_up("ranker", "champion")
seen["the name cannot be one"] = look_up("ranker", "no alias/at all")
client.create_model_version("ranker", "file:///nowhere")
client.set_registered_model_alias("ranker", "champion", "1")
seen["the alias is set"] = look_up("ranker", "champion")
client.delete_model_version("ranker", "1")
seen["its version was deleted"] = look_up("ranker", "champion")
seen["aliases then"] = str(client.get_registered_model("ranker").aliases)

print("mlflow", mlflow.__version__)
for when, answer in seen.items():
    print(f"{when}: {answer}")
invalid = "INVALID_PARAMETER_VALUE"
sys.exit(0 if list(seen.values()) == ["RESOURCE_DOES_NOT_EXIST", invalid, invalid, "version 1", invalid, "{}"] else "this has changed")
PYTHON
