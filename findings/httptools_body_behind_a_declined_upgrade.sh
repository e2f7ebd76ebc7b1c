#!/usr/bin/env bash
# httptools 0.9.0: a request that asks for an upgrade is complete before its body, which on_body never gets.
#
# A client that can speak HTTP/2 asks each server that it does not know yet for `Upgrade: h2c`, also with a POST: Java's own HttpClient does.
# A server may just go on in HTTP/1.1 (RFC 9110, 7.8). httptools calls on_message_complete at the end of the head, never on_body, and raises
# HttpParserUpgrade with the offset of the body, whatever content-length says. Who catches that and feeds the parser what is left, as for an
# upgrade without a body, gets "Invalid method encountered" for the body, or an empty body in the application. Without the two header
# fields the same bytes are read with their body. Have a new parser read the body, behind a head that only says how long it is.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'httptools==0.9.0'
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import httptools

BODY = b'{"user_id": 5}'
ASKING = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"


class Seen:
    def __init__(self):
        self.calls = []

    def on_body(self, part):
        self.calls.append(f"body {part.decode()}")

    def on_headers_complete(self):
        self.calls.append("head")

    def on_message_complete(self):
        self.calls.append("complete")


def read(fields):
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\n" + fields + b"content-length: %d\r\n\r\n" % len(BODY)
    try:
        parser.feed_data(head + BODY)
    except httptools.HttpParserUpgrade as upgrade:
        seen.calls.append(f"upgrade, {len(head + BODY) - upgrade.args[0]} bytes left")
        try:
            parser.feed_data((head + BODY)[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            seen.calls.append(str(error))
    return seen.calls


plain, asking = read(b""), read(ASKING)
print(f"httptools {version('httptools')}")
print("as it is:         ", plain)
print("asking for h2c:   ", asking)
expected = ["head", "complete", f"upgrade, {len(BODY)} bytes left", "Invalid method encountered"]
sys.exit(0 if plain == ["head", f"body {BODY.decode()}", "complete"] and asking == expected else "this has changed")
PYTHON
