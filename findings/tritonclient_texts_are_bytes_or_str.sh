#!/usr/bin/env bash
# tritonclient 2.73.0 over HTTP: as_numpy gives bytes or str for the same BYTES output, by the form in which it travelled.
#
# The model, the output and the dtype (object) are the same, and so is the call. Asked for as binary data, which is what the client does where
# nothing is said, elements are bytes; asked for with binary_data=False they are str. So `item == b"42"`, a dictionary of ids or
# `.decode()` works until somebody asks for JSON to read an answer in a debugger, and then nothing is equal to anything, without an error.
# The server is a dozen lines that answer both forms as the protocol writes them. Code that takes both has to look at each element.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'tritonclient[http]==2.73.0'
"$folder/venv/bin/python" - <<'PYTHON'
import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import numpy as np
import tritonclient.http as client


class OneModel(BaseHTTPRequestHandler):
    """Answers every inference with the BYTES tensor ["42"], in the form that is asked for."""

    def do_POST(self):
        length = self.headers.get("Inference-Header-Content-Length", self.headers["Content-Length"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = json.loads(body[: int(length)])["outputs"][0]["parameters"]["binary_data"]
        tensor = {"name": "item_id", "datatype": "BYTES", "shape": [1]}
        raw = struct.pack("<I", 2) + b"42" if wanted else b""
        tensor |= {"parameters": {"binary_data_size": len(raw)}} if wanted else {"data": ["42"]}
        head = json.dumps({"model_name": "m", "outputs": [tensor]}).encode()
        self.send_response(200)
        if wanted:
            self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.send_header("Content-Length", str(len(head + raw)))
        self.end_headers()
        self.wfile.write(head + raw)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), OneModel)
threading.Thread(target=server.serve_forever, daemon=True).start()
asking = client.InferenceServerClient(f"127.0.0.1:{server.server_port}")
user = client.InferInput("user_id", [1], "INT32")
user.set_data_from_numpy(np.array([5], np.int32))
found = {}
for form in (True, False):
    result = asking.infer("m", [user], outputs=[client.InferRequestedOutput("item_id", binary_data=form)])
    array = result.as_numpy("item_id")
    found[form] = array[0]
    print(f"binary_data={form}: dtype {array.dtype}, element {array[0]!r} of type {type(array[0]).__name__}")
asking.close()
server.shutdown()
print(f"tritonclient {version('tritonclient')}: equal to each other: {found[True] == found[False]}")
sys.exit(0 if found == {True: b"42", False: "42"} else "this has changed")
PYTHON
