"""The rows of the tables in docs/online-protocol.md that compare model servers, and the tables as Markdown.

tools/protocol_table.py asks the servers; tests/tools/test_protocol_table.py asks ours.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol_requests import (
    TEXTS,
    Ask,
    F,
    Target,
    becomes,
    by_grpc,
    error_form,
    first_item,
    form_of,
    get,
    infer,
    is_ready_by_grpc,
    last_score,
    names,
    not_utf8,
    odd_arrays,
    one_user,
    pair,
    rank,
    rank_binary,
    recommend,
    request,
    shape_of,
    status_or,
    taken,
    tell_grpc_id,
    tell_id,
    tensor,
    texts,
    user,
    versions,
)

DOCUMENT = Path(__file__).parent.parent / "docs" / "online-protocol.md"
BEGIN = "<!-- begin: written by tools/protocol_table.py --write, do not edit -->"
END = "<!-- end: tools/protocol_table.py -->"
OURS = "recsys_batch"
COLUMNS = {"triton": "Triton 2.51.0", "mlserver": "MLServer 1.7.1", OURS: "recsys_batch"}


@dataclass(frozen=True)
class Case:
    """A row of the table: the request in words, and what asks a server for it and says what came."""

    request: str
    ask: Ask


PADDED = request(user(), tensor("k", "INT32", [1], "[70]"))
GROUPS: dict[str, list[Case]] = {
    "Ids of requests": [
        Case("no id", recommend(request(user()), tell_id())),
        Case('`"id": "mine"`', recommend(request(user(), more='"id":"mine",'), tell_id("mine"))),
        Case('`"id": ""`', recommend(request(user(), more='"id":"",'), tell_id(""))),
        Case('`"id": null`', recommend(request(user(), more='"id":null,'), tell_id())),
        Case('`"id": 7`', recommend(request(user(), more='"id":7,'), tell_id("7"))),
        Case('`"id": "a"`, then `"id": "b"`', recommend(request(user(), more='"id":"a","id":"b",'), tell_id("a", "b"))),
        Case("gRPC, no id", by_grpc("recommend", one_user, tell_grpc_id(""))),
        Case("gRPC, id `mine`", by_grpc("recommend", one_user, tell_grpc_id("mine"), request_id="mine")),
    ],
    "NaN and infinity": [
        *(Case(f"bare `{word}` for FP32", rank(word)) for word in ("NaN", "Infinity", "-Infinity")),
        Case('`"NaN"`, text, for FP32', rank('"NaN"', becomes)),
        Case("`null` for FP32", rank("null", becomes)),
        Case("`1e39` for FP32", rank("1e39", becomes)),
        Case("`1e400` for FP32", rank("1e400", becomes)),
        Case("a score of -infinity, in JSON", recommend(PADDED, last_score)),
        Case("NaN in bytes, its score in JSON", rank_binary(becomes, float("nan"))),
        Case("gRPC, NaN for FP32", by_grpc("ranker", odd_arrays, lambda result: f"scored `{result.as_numpy('score')[0, 0]}`")),
    ],
    "Shapes and batches": [
        Case("[2, 1] where [-1] is declared", recommend(request(user("[5,6]", [2, 1])), shape_of)),
        Case("[1, 2] where [-1] is declared", recommend(request(user("[5,6]", [1, 2])), shape_of)),
        Case("data nested, shape flat", recommend(request(user("[[5],[6]]", [2])), shape_of)),
        Case("an empty batch, shape [0]", recommend(request(user("[]", [0])), shape_of)),
        Case("fewer values than the shape has", recommend(request(user("[5]", [2])), shape_of)),
        Case("more values than the shape has", recommend(request(user("[5,6]", [1])), shape_of)),
        Case("a shape of -1", recommend(request(user("[5]", [-1])), shape_of)),
    ],
    "Datatypes": [
        Case("INT32 for INT64", recommend(request(user(datatype="INT32")))),
        Case("BYTES of digits for INT64", recommend(request(user('["5"]', datatype="BYTES")))),
        Case("FP64 for FP32", rank("0.5", datatype="FP64")),
        Case("FP16 for FP32, in JSON", rank("0.5", datatype="FP16")),
        Case("a whole number for FP32", rank("1")),
        Case("`5.0` for INT64", recommend(request(user("[5.0]")), first_item)),
        Case("`5.5` for INT64", recommend(request(user("[5.5]")), first_item)),
        Case('`"5"` for INT64', recommend(request(user('["5"]')), first_item)),
        Case("`true` for INT64", recommend(request(user("[true]")), first_item)),
        Case("2^63 for INT64", recommend(request(user(f"[{2**63}]")), first_item)),
        Case("2^32 + 2 for INT32 (`k`)", recommend(request(user(), tensor("k", "INT32", [1], f"[{2**32 + 2}]")), shape_of)),
    ],
    "BYTES": [
        Case("text", texts('["5"]')),
        Case("`12`, a number", texts("[12]")),
        Case("`null`", texts("[null]")),
        Case("gRPC, bytes that are no UTF-8", by_grpc(TEXTS, not_utf8, lambda _: "taken")),
    ],
    "Binary tensors": [
        Case("an input as bytes", rank_binary(taken)),
        Case("`binary_data_output`", rank_binary(form_of, more='"parameters":{"binary_data_output":true},')),
        Case("bytes behind the last tensor", rank_binary(taken, behind=b"1234")),
        Case("too short a `binary_data_size`", rank_binary(taken, size=4 * F - 4)),
        Case(
            "`Inference-Header-Content-Length: 0`, a tensor alone, where the model has two",
            recommend(struct.pack("<q", 5), inference_header_content_length="0"),
        ),
    ],
    "Inputs and outputs": [
        Case("an unknown input besides", recommend(request(user(), tensor("odd", "INT32", [1], "[1]")))),
        Case("a missing input", lambda target: taken(infer(target, "ranker", request(*pair()[:2])))),
        Case("no inputs", recommend(request())),
        Case("the same input twice", recommend(request(user("[5]"), user("[6]")), first_item)),
        Case("`outputs`: score", recommend(request(user(), more='"outputs":[{"name":"score"}],'), names)),
        Case("`outputs`: score, item_id", recommend(request(user(), more='"outputs":[{"name":"score"},{"name":"item_id"}],'), names)),
        Case("`outputs`: score, twice", recommend(request(user(), more='"outputs":[{"name":"score"},{"name":"score"}],'), names)),
        Case("`outputs`: one that there is not", recommend(request(user(), more='"outputs":[{"name":"odd"}],'), names)),
        Case("unknown `parameters`", recommend(request(user(), more='"parameters":{"odd":1},'))),
        Case("an unknown key", recommend(request(user(), more='"odd":1,'))),
    ],
    "Models and versions": [
        Case("infer, unknown model", lambda target: taken(infer(target, "odd", request(user())))),
        Case("metadata, unknown model", get("/v2/models/odd", taken)),
        Case("ready, unknown model", get("/v2/models/odd/ready", taken)),
        Case("infer, unknown version", lambda target: taken(infer(target, "recommend", request(user()), version="9"))),
        Case("ready, unknown version", get("/v2/models/recommend/versions/9/ready", taken)),
        Case("metadata, versions", get("/v2/models/recommend", lambda answer: status_or(answer, versions))),
        Case("gRPC, infer, unknown model", by_grpc("odd", one_user, lambda _: "taken")),
        Case("gRPC, ready, unknown model", is_ready_by_grpc),
    ],
    "Bodies and errors": [
        Case("no JSON", recommend("{", error_form)),
        Case("an empty body", recommend("")),
        Case("a byte order mark", recommend("\ufeff" + request(user()))),
        Case("gzip", recommend(gzip.compress(request(user()).encode()), content_encoding="gzip")),
        Case("an error's status, body and type", recommend(request(user(datatype="odd")), error_form)),
    ],
}


def ask_all(target: Target) -> dict[tuple[str, str], str]:
    """Ask a server everything: (group, request) -> cell."""
    return {(group, case.request): case.ask(target) for group, cases in GROUPS.items() for case in cases}


def render(cells: Mapping[str, Mapping[tuple[str, str], str]]) -> str:
    """Make the Markdown of columns' cells."""
    lines = []
    for group, cases in GROUPS.items():
        lines += [f"| {group} | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
        for case in cases:
            found = [cells[name].get((group, case.request), "not asked") for name in COLUMNS]
            lines.append(f"| {case.request} | {' | '.join(found)} |")
        lines.append("")
    return "\n".join(lines)


def read_cells(document: str) -> dict[str, dict[tuple[str, str], str]]:
    """Read the cells that a document holds, as ``ask_all`` gives them, by column."""
    cells: dict[str, dict[tuple[str, str], str]] = {name: {} for name in COLUMNS}
    group = ""
    for line in document.partition(BEGIN)[2].partition(END)[0].splitlines():
        values = [value.strip() for value in line.strip("|").split(" | ")]
        if len(values) != len(COLUMNS) + 1:
            group = "" if not line else group
        elif not group:
            group = values[0]
        else:
            for name, value in zip(COLUMNS, values[1:], strict=True):
                cells[name][group, values[0]] = value
    return cells


def put_into(document: str, part: str) -> str:
    """The document with ``part`` between its two markers. Raises ValueError: a marker is missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{DOCUMENT.name} lacks the markers {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n\n{part}\n{end}{after}"
