"""The public names of ``recsys_batch.online``."""

import subprocess
import sys

import pytest

from recsys_batch import online


def test_every_public_name_is_found_and_others_are_not() -> None:
    assert all(callable(getattr(online, name)) for name in online.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        online.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, recsys_batch.online; print([name for name in ('numpy', 'pyarrow', 'msgspec', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
