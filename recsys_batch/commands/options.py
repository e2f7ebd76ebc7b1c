"""Options that every command shares."""

import datetime as dt
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from recsys_batch.config import load_config
from recsys_batch.errors import ConfigError

DEFAULT_CONF = "conf/local.toml"

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there.")


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --conf and --set to a command, and pass the checked config as ``config``."""

    @click.option("--conf", default=DEFAULT_CONF, show_default=True, help="TOML file.")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, e.g. scoring.top_k=50. Repeatable.")
    @functools.wraps(command)
    def wrapped(conf: str, overrides: tuple[str, ...], **options: Any) -> Any:
        return command(config=load_config(conf, overrides), **options)

    return wrapped


def with_config_if_any(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --conf and --set to a command that runs without a config file, too: a small image has none, and every key has a default."""

    @click.option("--conf", metavar="TEXT", help=f"TOML file.  [default: {DEFAULT_CONF} where it is there]")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, e.g. online.port=9000. Repeatable.")
    @functools.wraps(command)
    def wrapped(conf: str | None, overrides: tuple[str, ...], **options: Any) -> Any:
        path = conf or (DEFAULT_CONF if Path(DEFAULT_CONF).is_file() else None)
        return command(config=load_config(path, overrides), **options)

    return wrapped


class ParsedType(click.ParamType):
    """A value that ``parse`` reads from text; its ValueError becomes "... is not ``expected``". Defaults may be values already."""

    def __init__(self, name: str, parse: Callable[[str], Any], expected: str) -> None:
        self.name, self._parse, self._expected = name, parse, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not {self._expected}", param, ctx)


DATE = ParsedType("YYYY-MM-DD", dt.date.fromisoformat, "a date like 2026-11-24")


def parse_mapping(option: str, text: str | None) -> dict[str, str]:
    """Parse ``user_id=cust,item_id=sku`` to a dict.

    Raises:
        ConfigError: not of that form.
    """
    pairs: dict[str, str] = {}
    for part in (text or "").split(",") if text else []:
        name, sep, column = (piece.strip() for piece in part.partition("="))
        if not (sep and name and column):
            raise ConfigError(f"{option} {text!r}: expected OUR_NAME=YOUR_COLUMN[,...], for example user_id=customer,item_id=sku")
        pairs[name] = column
    return pairs
