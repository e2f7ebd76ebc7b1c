"""Surfaces of a product: where recommendations are shown, and what each asks for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys_batch.errors import ConfigError

Context = Literal["none", "session", "query"]
_SECONDS_PER_DAY = 86_400


class Surface(BaseModel):
    """Demands of a surface. Rates are a day's mean where nothing else is said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int = Field(ge=1, description="that may come")
    active_share: float = Field(gt=0, le=1, description="of them who come on a day")
    requests_per_second: float = Field(gt=0, description="mean over the day")
    peak_factor: float = Field(3.0, ge=1, description="the busiest minutes' rate over the mean")
    items: int = Field(ge=1, description="of the catalogue that may be shown")
    shown: int = Field(10, ge=1, description="items of an answer")
    staleness_hours: float = Field(gt=0, description="after which a list must know what its user did")
    context: Context = Field("none", description="what an answer must depend on besides the user: nothing, this session, or a query")
    candidates_change_hours: float = Field(24.0, gt=0, description="within which a new item must be able to appear")
    p99_ms: float = Field(gt=0, description="that 99 % of answers may take, network included")
    network_ms: float = Field(0.0, ge=0, description="of it, between the server and who waits")
    events_per_second: float = Field(0.0, ge=0, description="that change what users should see")

    @property
    def budget_seconds(self) -> float:
        """Time that the server itself has for an answer, at the 99th percentile."""
        return (self.p99_ms - self.network_ms) / 1000

    @property
    def peak_rate(self) -> float:
        """Requests per second in the busiest minutes."""
        return self.requests_per_second * self.peak_factor

    @property
    def requests_per_day(self) -> float:
        return self.requests_per_second * _SECONDS_PER_DAY


def parse_surfaces(document: Mapping[str, Any], origin: str) -> dict[str, Surface]:
    """Parse surfaces by name. Raises ConfigError: one lacks something, or contradicts itself."""
    tables = document.get("surface")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{origin} names no surface: write [surface.NAME] with users, requests_per_second, ... (docs/deciding.md)")
    surfaces = {}
    for name, table in tables.items():
        try:
            surface = surfaces[name] = Surface.model_validate(table)
        except ValidationError as error:
            raise ConfigError(f"{origin}, surface {name}: " + "; ".join(_explain(one) for one in error.errors())) from None
        for contradiction in _contradictions(surface):
            raise ConfigError(f"{origin}, surface {name}: {contradiction}")
    return surfaces


def load_surfaces(path: Path) -> dict[str, Surface]:
    """Read a TOML file of surfaces. Raises ConfigError as ``parse_surfaces``, and for a file that is not there or no TOML."""
    try:
        return parse_surfaces(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: pass --surfaces, a file like conf/surfaces.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not readable TOML: {error}") from None


def _explain(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key} is missing ({Surface.model_fields[key].description})"
    if error["type"] == "extra_forbidden":
        return f"{key} is no key of a surface: {', '.join(Surface.model_fields)}"
    return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _contradictions(surface: Surface) -> list[str]:
    found = []
    if surface.network_ms >= surface.p99_ms:
        found.append(f"p99 {surface.p99_ms:g} ms with {surface.network_ms:g} ms of network leaves no time to answer: raise p99_ms")
    if surface.shown > surface.items:
        found.append(f"{surface.shown:,} items are shown of a catalogue of {surface.items:,}: lower shown")
    if (active := surface.users * surface.active_share) > surface.requests_per_day:
        found.append(
            f"{active:,.0f} users come on a day, but {surface.requests_per_second:g} requests per second are "
            f"{surface.requests_per_day:,.0f} a day: raise requests_per_second, or lower active_share"
        )
    if surface.events_per_second == 0 and surface.staleness_hours < 1 and surface.context == "none":
        found.append(f"lists must know within {surface.staleness_hours:g} hours what users did: say how many events_per_second there are")
    return found
