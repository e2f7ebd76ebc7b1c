#!/usr/bin/env bash
# fake-gcs-server 1.56.1 with deltalake 1.6.6: the emulator of Google Cloud Storage takes what pyarrow writes, and nothing that deltalake writes.
#
# Google Cloud Storage has two interfaces to the same objects, JSON and XML. pyarrow's client (google-cloud-cpp) uploads by JSON, the
# crate object_store, by which deltalake, DataFusion and Polars write, by the XML one's PUT /BUCKET/OBJECT. fake-gcs-server answers that
# with 400 "invalid uploadType": it has the path for signed URLs only. So a test against it that lists and reads is green, and the first
# commit fails. Take another server for tests of what writes through object_store.
#
# Needs Go. Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
GOBIN="$folder" go install github.com/fsouza/fake-gcs-server@v1.56.1
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'deltalake==1.6.6' 'pyarrow==25.0.1'
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$folder/fake-gcs-server" -scheme http -host 127.0.0.1 -port "$port" -public-host "127.0.0.1:$port" -backend memory > "$folder/log" 2>&1 &
server=$!
CLOUD_STORAGE_EMULATOR_ENDPOINT="http://127.0.0.1:$port" "$folder/venv/bin/python" - "http://127.0.0.1:$port" <<'PYTHON'
import json
import sys
import time
import urllib.request

import deltalake
import pyarrow as pa
from deltalake import write_deltalake
from pyarrow import fs

address = sys.argv[1]
request = urllib.request.Request(f"{address}/storage/v1/b?project=p", b'{"name": "bucket"}', {"Content-Type": "application/json"})
for tried in range(50):
    try:
        urllib.request.urlopen(request)
        break
    except OSError:
        time.sleep(0.1)
store = fs.GcsFileSystem(anonymous=True)
with store.open_output_stream("bucket/file") as stream:
    stream.write(b"content")
with store.open_input_stream("bucket/file") as stream:
    back = stream.read()
account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
try:
    options = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "ALLOW_HTTP": "true"}
    write_deltalake("gs://bucket/table", pa.table({"x": [1]}), storage_options=options)
    said = "written"
except Exception as error:
    said = str(error)
print(f"deltalake {deltalake.__version__}, pyarrow {pa.__version__}")
print(f"written and read back by pyarrow: {back!r}")
print(f"written by deltalake: {said.splitlines()[0]}")
sys.exit(0 if back == b"content" and "400 Bad Request" in said and "invalid uploadType" in said else "this has changed")
PYTHON
