"""Source formats of published data sets, a TOML file each in conf/presets, or a file of the reader's own."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from recsys_batch.errors import SourceError
from recsys_batch.sources.source_format import COLUMNS_OF_KIND, SourceFormat, unescape_delimiter

FOLDERS = (Path("conf/presets"), Path(__file__).parents[2] / "conf" / "presets")
"""Where presets are looked for: under the working directory, then beside the package."""

_KEYS = {field.name for field in fields(SourceFormat)} - {"kind", "transform", "null_values"} | {"format"}


def list_presets() -> list[str]:
    """List the names of the presets that come with the project."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def load_preset(name: str) -> dict[str, SourceFormat]:
    """Load a preset by its name or by the path of a TOML file: the format of each kind.

    Raises SourceError where there is none, or it has a key that no format has.
    """
    paths = [Path(name)] if name.endswith(".toml") else [folder / f"{name}.toml" for folder in FOLDERS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise SourceError(f"--preset {name!r} is unknown; known presets: {', '.join(list_presets())}, or pass the path of a .toml file")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(f"preset {path} is not readable TOML: {error}") from None
    shared = {key: value for key, value in document.items() if key not in COLUMNS_OF_KIND}
    return {kind: _read_format(path, {**shared, **document.get(kind, {})}) for kind in COLUMNS_OF_KIND}


def _read_format(path: Path, keys: dict[str, Any]) -> SourceFormat:
    unknown = sorted(set(keys) - _KEYS)
    if unknown:
        raise SourceError(f"preset {path} has unknown keys: {', '.join(unknown)}; known keys: {', '.join(sorted(_KEYS))}")
    keys = {"kind" if key == "format" else key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    if "delimiter" in keys:
        keys["delimiter"] = unescape_delimiter(keys["delimiter"])
    return SourceFormat(**keys)
