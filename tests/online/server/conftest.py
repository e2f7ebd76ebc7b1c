"""PEM files made by openssl."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


class Authority:
    """Signs certificates for 127.0.0.1.

    Attributes:
        certificate: its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        openssl("req", "-x509", *NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", "/CN=ours", "-days", "2", *OF_AUTHORITY)

    def sign(self, name: str, days: int = 2) -> tuple[Path, Path]:
        """Make a pair (certificate, key)."""
        certificate, key, request, names = (self._folder / f"{name}.{ending}" for ending in ("pem", "key", "csr", "ext"))
        openssl("req", "-new", *NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        signer = ["-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"]
        openssl("x509", "-req", "-in", request, *signer, "-days", days, "-extfile", names, "-out", certificate)
        return certificate, key


OF_AUTHORITY = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
"""Python 3.13 checks certificates by RFC 5280 (VERIFY_X509_STRICT): an authority has to say that it is one."""
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def run_openssl() -> Callable[..., None]:
    return openssl
