"""What keeps a server from starting is one sentence and exit code 2."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.cli import run
from recsys_batch.online.server import listen_address, startup_checks


@pytest.fixture
def refusal(tmp_path: Path, find_port: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """Starts a server that is refused; its sentence."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(listen_address, "_WAIT_SECONDS", 0.0)

    def start(*options: object, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        snapshots = [] if "--snapshots" in options else ["--snapshots", str(tmp_path / "snapshots")]
        port = [] if "--port" in options else ["--port", str(find_port())]
        code = run(["serve", *snapshots, *port, *map(str, options)])
        lines = capsys.readouterr().err.splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (code, lines)
        assert not list((tmp_path / "temporary").glob("*"))
        return str(lines[0])

    return start


def test_an_address_that_cannot_be_had_says_why(refusal: Any, find_port: Any) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"in use by process {os.getpid()}" in refusal("--port", port)
        assert f"127.0.0.1:{port} is in use" in refusal("--host", "localhost", "--grpc-port", port)
    assert "no address of this machine" in refusal("--host", "nowhere.invalid")
    assert "--port and --grpc-port are both 18080" in refusal("--port", 18080, "--grpc-port", 18080)


def test_folders_that_cannot_be_used_say_why(refusal: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"snapshots {file} cannot be read (Not a directory)" in refusal("--snapshots", file)
    assert f"exposures {file} cannot be written (File exists)" in refusal("--exposures", file)
    assert f"exposures {file / 'in'} cannot be written (Not a directory)" in refusal("--exposures", file / "in")


def test_a_full_disk_says_so(refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> Any:
            raise OSError(28, "No space left on device")

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(startup_checks.tempfile, "TemporaryFile", lambda **_: Full())
    assert "temporary folder (TMPDIR)" in refusal() and "No space left on device" in refusal()


def test_without_a_temporary_folder_it_says_so(refusal: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert "set TMPDIR" in refusal()


@pytest.mark.parametrize("token", ["secret\n", " secret", "s\u00e9cret", "a\tb"], ids=["newline", "blank", "accent", "tab"])
def test_a_token_that_no_client_can_send_is_refused_and_not_shown(token: str, refusal: Any) -> None:
    sentence = refusal(RECSYS_BATCH_CLIENT_TOKEN=token)
    assert "RECSYS_BATCH_CLIENT_TOKEN has blanks" in sentence and "cret" not in sentence


def test_urls_that_are_none_are_refused_and_not_shown(refusal: Any) -> None:
    assert "RECSYS_BATCH_REDIS_URL is no URL of redis" in (told := refusal(RECSYS_BATCH_REDIS_URL="secret@host"))
    assert "secret" not in told
    options = ("--set", "online.engine=oip", "--set")
    assert "online.engine_url is no URL of http or https" in refusal(*options, "online.engine_url=tcp://x", RECSYS_BATCH_REDIS_URL="")
    assert "online.engine_url is no URL of http or https" in refusal(*options, "online.engine_url=http://x:y")


def test_settings_that_never_look_are_refused(refusal: Any) -> None:
    for value in ("inf", "nan", "1e12"):
        assert "online.poll_ms" in refusal("--set", f"online.poll_ms={value}")


def test_tls_files_that_cannot_be_used_say_why(refusal: Any, authority: Any, run_openssl: Any, tmp_path: Path) -> None:
    certificate, key = authority.sign("server")
    _, other_key = authority.sign("other")
    expired, expired_key = authority.sign("expired", days=-1)
    encrypted, nonsense = tmp_path / "encrypted.key", tmp_path / "nonsense.pem"
    run_openssl("pkey", "-in", key, "-aes256", "-passout", "pass:word", "-out", encrypted)
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n")

    def told(certificate: Path, key: Path, *more: object) -> str:
        return str(refusal("--tls-certificate", certificate, "--tls-key", key, *more))

    assert "are the files swapped" in told(key, certificate)
    assert f"{other_key} is not the key of --tls-certificate {certificate}" in told(certificate, other_key)
    assert "certificate has expired" in told(expired, expired_key)
    assert f"--tls-key {encrypted} is encrypted" in told(certificate, encrypted)
    assert f"{tmp_path / 'none'} cannot be read: No such file" in told(certificate, tmp_path / "none")
    assert f"{tmp_path} cannot be read: Is a directory" in told(tmp_path, key)
    assert f"--tls-certificate {nonsense} and --tls-key {key} cannot be used" in told(nonsense, key)
    assert f"--tls-client-ca {nonsense} cannot be used" in told(certificate, key, "--tls-client-ca", nonsense)
    assert "--tls-client-ca needs --tls-certificate" in refusal("--tls-client-ca", authority.certificate)
    assert "found one of them" in refusal("--tls-key", key)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="rights are taken from root, by setpriv")
def test_rights_that_the_user_lacks_say_so(tmp_path: Path, find_port: Any) -> None:
    lost = tmp_path / "lost"
    lost.mkdir(mode=0o700)
    os.chown(lost, 12345, 12345)
    lesser = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-m", "recsys_batch", "serve"]
    for options, words in (
        (["--set", f"online.snapshots={lost}"], "cannot be read (Permission denied)"),
        (["--set", f"online.exposures={lost}"], "cannot be written (Permission denied)"),
    ):
        command = [*lesser, "--port", str(find_port()), *options]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2 and words in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def broken(folder: Path, package: str) -> str:
    """A PYTHONPATH on which a package cannot be imported."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("raise ImportError('it is broken')\n")
    return os.pathsep.join([str(folder), *sys.path])


@pytest.mark.slow
@pytest.mark.parametrize(("package", "who"), [("grpc", "grpc 1"), ("lmdb", "worker 1")])
def test_a_process_that_can_never_start_ends_the_server(package: str, who: str, tmp_path: Path, find_port: Any) -> None:
    command = [sys.executable, "-m", "recsys_batch", "serve", "--snapshots", str(tmp_path / "none"), "--workers", "1"]
    ports = ["--port", str(find_port()), *(["--grpc-port", str(find_port())] if package == "grpc" else [])]
    env = {**os.environ, "PYTHONPATH": broken(tmp_path, package)}
    ended = subprocess.run([*command, *ports], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"error: the server cannot start: {who}") and "it is broken" in ended.stderr
