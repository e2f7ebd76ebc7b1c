"""The certificate and key of a server, tried before it starts."""

import contextlib
import ssl
from pathlib import Path

from recsys_batch.errors import UsageError

_PARTIAL_CHAIN = ssl.VERIFY_X509_PARTIAL_CHAIN
_EXPIRED, _NOT_YET_VALID = 10, 9


def check_tls_files(certificate: Path | None, key: Path | None, client_ca: Path | None) -> None:
    """Check that a server can be started with these PEM files, by a handshake with itself.

    Raises:
        UsageError: one is missing, unreadable, encrypted, expired, not what it should be, or does not fit the other.
    """
    if (certificate is None) != (key is None):
        raise UsageError("TLS needs --tls-certificate and --tls-key, found one of them")
    if client_ca is not None and certificate is None:
        raise UsageError("--tls-client-ca needs --tls-certificate and --tls-key: without TLS clients show no certificates")
    if certificate is None or key is None:
        return
    _check_pem(certificate, "--tls-certificate", "CERTIFICATE-----")
    _check_pem(key, "--tls-key", "PRIVATE KEY-----")
    if client_ca is not None:
        _check_pem(client_ca, "--tls-client-ca", "CERTIFICATE-----")
        _load_authorities(client_ca, "--tls-client-ca")
    _check_dates(_load_pair(certificate, key), certificate)


def make_tls_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Make the context of a server that speaks HTTP/1.1; with an authority, only clients with its certificates get in."""
    context = _load_pair(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_pem(path: Path, option: str, mark: str) -> None:
    try:
        text = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from None
    if mark not in text:
        raise UsageError(f"{option} {path} is not a PEM file with BEGIN ... {mark.rstrip('-')}: are the files swapped, or in another form?")


def _load_pair(certificate: Path, key: Path) -> ssl.SSLContext:
    asked_for: list[str] = []

    def password() -> str:
        asked_for.append("password")
        return ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password)
    except (ssl.SSLError, OSError, ValueError) as error:
        if asked_for:
            raise UsageError(f"--tls-key {key} is encrypted: write it without a password, by `openssl pkey -in KEY -out FILE`") from None
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise UsageError(f"--tls-key {key} is not the key of --tls-certificate {certificate}") from None
        raise UsageError(f"--tls-certificate {certificate} and --tls-key {key} cannot be used: {error}") from None
    return context


def _load_authorities(path: Path, option: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"{option} {path} cannot be used: {error}") from None
    return context


def _check_dates(server_context: ssl.SSLContext, certificate: Path) -> None:
    """Shake hands in memory with a client that trusts this certificate itself, so that only its dates can be wrong."""
    client_context = _load_authorities(certificate, "--tls-certificate")
    client_context.verify_flags |= _PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
                raise UsageError(f"--tls-certificate {certificate}: {error.verify_message}; have it renewed") from None
            return  # of no matter to who trusts it for another reason
        except ssl.SSLError as error:
            raise UsageError(f"--tls-certificate {certificate} cannot be used: {error}") from None
