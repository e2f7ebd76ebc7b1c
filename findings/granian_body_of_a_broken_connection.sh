#!/usr/bin/env bash
# granian 2.8.9, RSGI: `async for` over a body ends as if it were whole where the client went away in the middle of it.
#
# A chunked request of which the last chunk never comes (the client is gone) is read to its end by `async for chunk in protocol`, without
# an error; all that differs is one more empty chunk. A body with a content-length, read by `await protocol()`, raises
# RSGIProtocolClosed in the same situation. ASGI says http.disconnect, WSGI servers raise. So who streams bodies takes the beginning of an upload for
# the upload. Count the empty chunks (a whole body brings one), or ask for a content-length.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
pid=
trap 'kill "$pid" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'granian==2.8.9'
cd "$folder"
cat > app.py <<'PYTHON'
import json


async def app(scope, proto):
    try:
        if "content-length" in scope.headers:
            seen = {"whole": (await proto()).decode()}
        else:
            seen = {"chunks": [bytes(chunk).decode() async for chunk in proto]}
    except Exception as error:
        seen = {"raised": type(error).__name__}
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps(seen) + "\n")
    proto.response_empty(204, [])
PYTHON
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$folder/venv/bin/granian" --interface rsgi --host 127.0.0.1 --port "$port" app:app > server.log 2>&1 &
pid=$!
sleep 3
"$folder/venv/bin/python" - "$port" <<'PYTHON'
import json
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path

CHUNKED, SIZED = b"transfer-encoding: chunked", b"content-length: 10"
REQUESTS = [
    ("chunked, whole", CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
    ("chunked, broken off", CHUNKED, b"5\r\nhello\r\n"),
    ("with its length, broken off", SIZED, b"hello"),
]


def send(header, body):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n\r\n")
        time.sleep(0.3)
        client.sendall(body)
        time.sleep(0.3)


for _, header, body in REQUESTS:
    send(header, body)
    time.sleep(0.5)
seen = [json.loads(line) for line in Path("seen.jsonl").read_text().splitlines()]
print(f"granian {version('granian')}")
for (what, *_), outcome in zip(REQUESTS, seen):
    print(f"{what}: {outcome}")
whole, broken, sized = seen
is_so = "".join(whole["chunks"]) == "".join(broken["chunks"]) == "hello" and broken["chunks"].count("") == whole["chunks"].count("") + 1
sys.exit(0 if is_so and "raised" in sized else "this has changed")
PYTHON
