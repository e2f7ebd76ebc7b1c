"""Options that say how source files are written, which ingest and evaluate --truth share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np

from recsys_batch.commands.options import parse_mapping
from recsys_batch.config import Config
from recsys_batch.errors import ConfigError, UsageError
from recsys_batch.sources.presets import list_presets, load_preset
from recsys_batch.sources.source_format import BINARY_IDS, FORMATS, SourceFormat, parse_quote, unescape_delimiter

_COLUMNS = "The files' column names, e.g. user_id=customer,item_id=sku,event_ts=when,weight=amount; in JSON paths with dots."
_MAX_WEIGHT = float(np.finfo(np.float32).max)
_TIME_FORMAT = "epoch:s, epoch:ms, epoch:us, epoch:ns, epoch:relative, or as strptime, '%d.%m.%Y'.  [default: by the values]"
_OPTIONS = (
    click.option("--format", "file_format", type=click.Choice(FORMATS), help="Format of the files."),
    click.option("--preset", metavar="NAME", help=f"Format and columns of a published data set: {', '.join(list_presets())}."),
    click.option("--columns", metavar="OURS=THEIRS,...", help=_COLUMNS),
    click.option("--delimiter", help="Delimiter of CSV files; $'\\t' is a tab.  [default: ,]"),
    click.option("--quote", metavar="none|CHAR", help='Character around CSV fields.  [default: "]'),
    click.option("--escape", metavar="CHAR", help="Makes the next character of a quoted CSV field ordinary.  [default: doubled quotes]"),
    click.option("--header", type=click.Choice(["first", "none"]), help="none: --columns user_id=1,item_id=2.  [default: first line]"),
    click.option("--multiline", is_flag=True, help="Quoted CSV fields may hold line ends."),
    click.option("--encoding", help="Encoding of text files, as iso-8859-1.  [default: utf-8]"),
    click.option("--time-format", metavar="FORMAT", help=_TIME_FORMAT),
    click.option("--weights", metavar="TYPE=WEIGHT,...", help="Weights by event_type, e.g. view=1,addtocart=3,transaction=5,dislike=-1."),
    click.option("--binary-ids", type=click.Choice(BINARY_IDS), help="How ids that are bytes become text.  [default: 16 bytes as a UUID]"),
    click.option("--category-separator", metavar="TEXT", help="Between the categories of one text.  [default: lists, else |]"),
)

_NAMES = (
    *("file_format", "preset", "columns", "delimiter", "quote", "escape", "header", "multiline", "encoding"),
    *("time_format", "weights", "binary_ids", "category_separator"),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how source files are written."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_formats(config: Config, options: dict[str, Any]) -> dict[str, SourceFormat]:
    """Read the formats of interactions, items and users from ``source_options``, which it takes out of ``options``.

    Raises UsageError where neither --format nor --preset is there, and SourceError or ConfigError where an option cannot be read.
    """
    given = {name: options.pop(name) for name in _NAMES}
    preset, file_format = given.pop("preset"), given.pop("file_format")
    if preset is None and file_format is None:
        raise UsageError(f"pass --format ({', '.join(FORMATS)}) or --preset ({', '.join(list_presets())})")
    formats = load_preset(preset) if preset else {kind: SourceFormat() for kind in ("interactions", "items", "users")}
    quote, delimiter = given["quote"], given["delimiter"]
    shared = {
        "kind": file_format,
        "delimiter": None if delimiter is None else unescape_delimiter(delimiter),
        "quote": None if quote is None else parse_quote(quote),
        "header": None if given["header"] is None else given["header"] == "first",
        "multiline": given["multiline"] or None,
        **{name: given[name] for name in ("escape", "encoding", "time_format", "binary_ids", "category_separator")},
    }
    formats = {kind: replace(how.with_options(**shared), null_values=config.data.null_values) for kind, how in formats.items()}
    own = {"interactions": ("--columns", given["columns"])}
    own |= {kind: (f"--{kind[:-1]}-columns", options.pop(f"{kind[:-1]}_columns", None)) for kind in ("items", "users")}
    for kind, (option, text) in own.items():
        mapping = {**formats[kind].columns, **parse_mapping(option, text)}
        formats[kind] = replace(formats[kind], columns=mapping)
    weights = _parse_weights(given["weights"]) or formats["interactions"].weights
    if weights and "weight" in formats["interactions"].columns:
        raise ConfigError("--weights and a weight column do not go together: leave weight out of --columns, or drop --weights")
    formats["interactions"] = replace(formats["interactions"], weights=weights)
    return formats


def _parse_weights(text: str | None) -> dict[str, float]:
    try:
        weights = {name: float(weight) for name, weight in parse_mapping("--weights", text).items()}
    except ValueError:
        raise ConfigError(f"--weights {text!r}: expected TYPE=NUMBER[,...], for example view=1,transaction=5") from None
    endless = [name for name, weight in weights.items() if not abs(weight) <= _MAX_WEIGHT]
    if endless:
        raise ConfigError(f"--weights {text!r}: the weight of {', '.join(endless)} is no finite number of the column's type, FLOAT")
    return weights
