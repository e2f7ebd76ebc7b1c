#!/usr/bin/env bash
# msgspec 0.23.0: an integer beyond 64 bits comes in and goes out as JSON, and cannot be written as MessagePack.
#
# msgspec.json decodes 2**70 into a field of type int, and encodes it again, so a server that answers in JSON never notices such an id.
# msgspec.msgpack.encode of the very same object raises OverflowError: MessagePack has nothing longer than 64 bits. Whoever answers in JSON
# and logs the same request in MessagePack afterwards fails after the answer was made. And the type cannot be told its bounds: a constraint
# Meta(lt=2**63) is taken where the type is written, and refused by the first convert that uses it.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'msgspec==0.23.0'
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
from typing import Annotated

import msgspec


class Request(msgspec.Struct):
    user_id: int


class Bounded(msgspec.Struct):
    user_id: Annotated[int, msgspec.Meta(ge=-(2**63), lt=2**63)]


def attempt(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


text = b'{"user_id":%d}' % 2**70
request = msgspec.json.decode(text, type=Request)
found = {
    "read from JSON": request.user_id == 2**70,
    "written as JSON": msgspec.json.encode(request) == text,
    "written as MessagePack": attempt(lambda: msgspec.msgpack.encode(request)),
    "with bounds of 64 bits": attempt(lambda: msgspec.convert({"user_id": 1}, Bounded)),
}
print(f"msgspec {version('msgspec')}")
for what, outcome in found.items():
    print(f"{what}: {outcome}")
is_so = found["read from JSON"] is True and found["written as JSON"] is True
is_so = is_so and str(found["written as MessagePack"]).startswith("OverflowError") and "int64" in str(found["with bounds of 64 bits"])
sys.exit(0 if is_so else "this has changed")
PYTHON
