#!/usr/bin/env bash
# granian 2.8.9 on Linux: a second server on the same port starts without a word, and the two share the connections.
#
# One would expect "address already in use", as uvicorn and gunicorn say. Granian's main process only tries to bind, with SO_REUSEPORT, and
# every worker then binds for itself, with SO_REUSEPORT again; another server of the same user does so, too, and the kernel spreads connections
# over all of them. Two releases, or two configurations, answer in turn on one port, and each log looks well. Whoever wants one server per
# address has to hold the port: bind and listen once without SO_REUSEPORT before the workers start.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'granian==2.8.9'
cd "$folder"
cat > app.py <<'PYTHON'
import os


async def app(scope, proto):
    proto.response_str(200, [("connection", "close")], os.environ["WHO"])
PYTHON
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
for who in first second; do
    WHO=$who "$folder/venv/bin/granian" --interface rsgi --host 127.0.0.1 --port "$port" app:app > "$who.log" 2>&1 &
    pids+=($!)
    sleep 3
done
"$folder/venv/bin/python" - "$port" "${pids[@]}" <<'PYTHON'
import collections
import os
import sys
import urllib.request
from importlib.metadata import version

port, *pids = map(int, sys.argv[1:])
for pid in pids:
    os.kill(pid, 0)  # raises where a server has ended
answers = collections.Counter(urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode() for _ in range(100))
said = [line for who in ("first", "second") for line in open(f"{who}.log") if "use" in line.lower() or "error" in line.lower()]
print(f"granian {version('granian')}: both servers run; 100 requests to one port were answered by {dict(sorted(answers.items()))}")
print(f"lines of their logs about it: {said}")
sys.exit(0 if set(answers) == {"first", "second"} and not said else "this has changed")
PYTHON
