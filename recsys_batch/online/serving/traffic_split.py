"""Two snapshots at once: a canary for a share of the users, and a shadow that is scored and compared but not shown."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from recsys_batch.errors import UsageError, quote
from recsys_batch.storage.atomic import write_file

ROUTES_FILE = "ROUTES.json"
_HASH_RANGE = 2**32
_Share = Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 1})]


@dataclass(frozen=True)
class TrafficSplit:
    """Shares of users and requests that snapshots beside the current one get.

    Attributes:
        canary: snapshot that ``weight`` (0 to 1) of the users get; None for nobody.
        shadow: snapshot that ``share`` (0 to 1) of the requests are also scored with; None for none.
    """

    canary: str | None = None
    weight: _Share = 0.0
    shadow: str | None = None
    share: _Share = 0.0

    def is_canary(self, key: bytes) -> bool:
        """Whether a user of that key is the canary's; the same user always is, until the canary is another one."""
        if self.canary is None:
            return False
        return zlib.crc32(key, zlib.crc32(self.canary.encode())) < self.weight * _HASH_RANGE

    @property
    def snapshot_ids(self) -> frozenset[str]:
        return frozenset(name for name in (self.canary, self.shadow) if name)

    def to_dict(self) -> dict[str, Any]:
        return {"canary": self.canary, "weight": self.weight, "shadow": self.shadow, "share": self.share}


def read_traffic_split(folder: Path) -> TrafficSplit:
    """Read ROUTES.json of the folder of snapshots; no canary and no shadow where there is none.

    Raises:
        UsageError: the file is not one that ``write_traffic_split`` wrote.
    """
    path = folder / ROUTES_FILE
    try:
        return parse_traffic_split(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return TrafficSplit()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None


def write_traffic_split(folder: Path, routes: TrafficSplit) -> None:
    write_file(folder / ROUTES_FILE, json.dumps(routes.to_dict()) + "\n")


def parse_traffic_split(values: Any) -> TrafficSplit:
    """Check parsed JSON and make a traffic split of it.

    Raises:
        UsageError: an unknown key, a name that is no text, a share outside 0 to 1, or one without its snapshot.
    """
    known = {"canary", "weight", "shadow", "share"}
    if not isinstance(values, dict) or set(values) - known:
        raise UsageError(f"routes are an object with {', '.join(sorted(known))}, all optional; found {quote(values)}")
    for name, share in (("canary", "weight"), ("shadow", "share")):
        who, part = values.get(name), values.get(share, 0.0)
        if who is not None and not isinstance(who, str):
            raise UsageError(f"{name} is {quote(who)}: expected the id of a snapshot, or null")
        if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part <= 1:
            raise UsageError(f"{share} is {quote(part)}: expected a number from 0 to 1")
        if part and who is None:
            raise UsageError(f"{share} is {part}, but there is no {name}")
    return TrafficSplit(values.get("canary"), float(values.get("weight", 0.0)), values.get("shadow"), float(values.get("share", 0.0)))
