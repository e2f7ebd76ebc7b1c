"""Kinds of stores that a warehouse may lie in: URI scheme -> how pyarrow, deltalake and Spark reach it, and what it can do.

Credentials, endpoints and regions come from the environment of the process that reads or writes, and from what machines of a cloud
or of a cluster have (profiles, roles, Kerberos tickets); no config holds them.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pyarrow import fs

from recsys_batch.errors import UsageError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=/)")


@dataclass(frozen=True)
class StoreJars:
    """Jars that Spark needs for a store and does not bring: the setting with their folder, the name of one, and what fetches them."""

    setting: str
    name: str
    command: str


@dataclass(frozen=True)
class Store:
    """A kind of store.

    Attributes:
        example: how a location is written.
        open_filesystem: authority of a location (bucket, or name node) -> pyarrow's filesystem.
        delta_options: makes deltalake's options; the rest it reads from the environment by itself.
        commit: what makes a commit of a Delta table all or nothing there: "conditional put" or "rename" (docs/object-store.md).
        jars: None where Spark brings what it needs.
        has_folders: a file needs its folder, is seen while it is written, and can be renamed. Without: it appears when it is closed.
        authority_in_path: paths of the filesystem begin with the authority.
    """

    example: str
    open_filesystem: Callable[[str], fs.FileSystem]
    delta_options: Callable[[], dict[str, str]]
    commit: str
    jars: StoreJars | None = None
    has_folders: bool = False
    authority_in_path: bool = True


def _open_s3(bucket: str) -> fs.FileSystem:
    return _s3_of(_s3_endpoint(), os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"), os.environ.get("AWS_ACCESS_KEY_ID"))


@lru_cache(maxsize=4)
def _s3_of(endpoint: str | None, region: str | None, key_id: str | None) -> fs.FileSystem:
    """Connect to S3, once per process and account. The key's id only tells accounts apart; pyarrow finds the secret by itself."""
    return fs.S3FileSystem(endpoint_override=endpoint, region=region, allow_delayed_open=True)


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _s3_delta_options() -> dict[str, str]:
    endpoint = _s3_endpoint()
    if endpoint is None:
        return {}
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}


def _open_hdfs(name_node: str) -> fs.FileSystem:
    return _hdfs_of(name_node, os.environ.get("HADOOP_USER_NAME"), os.environ.get("HADOOP_CONF_DIR"), os.getpid())


@lru_cache(maxsize=4)
def _hdfs_of(name_node: str, user: str | None, settings: str | None, process: int) -> fs.FileSystem:
    """Connect to a name node, once per process and user: a client's threads do not pass a fork.

    pyarrow's own HadoopFileSystem needs libhdfs.so and a JVM in each process; hdfs-native is the client that deltalake has, too.
    Raises UsageError where it is not installed.
    """
    try:
        from hdfs_native.fsspec import HdfsFileSystem
    except ModuleNotFoundError as error:
        raise UsageError(
            f"hdfs://{name_node} needs {error.name}, which this install leaves out: pip install 'recsys-batch[hdfs]'"
        ) from None

    class RenamingHdfs(HdfsFileSystem):  # type: ignore[misc]
        """HdfsFileSystem with times of files under the name that pyarrow reads, and a move that replaces its target."""

        cachable = False

        def _convert_file_status(self, file_status: Any) -> dict[str, Any]:
            return {**super()._convert_file_status(file_status), "mtime": file_status.modification_time / 1000}

        def mv(self, path1: str, path2: str, **options: Any) -> None:
            self.client.rename(path1, path2, True)

    host, _, port = name_node.partition(":")
    return fs.PyFileSystem(fs.FSSpecHandler(RenamingHdfs(host=host, port=int(port) if port else None)))


STORES = {
    "s3a": Store(
        "s3a://BUCKET/FOLDER",
        _open_s3,
        _s3_delta_options,
        "conditional put",
        StoreJars("s3a_jars", "hadoop-aws", "make s3a-jars"),
    ),
    "hdfs": Store("hdfs://NAMENODE:PORT/FOLDER", _open_hdfs, dict, "rename", has_folders=True, authority_in_path=False),
}
"""Scheme -> kind of store. Any other scheme is refused by name."""

_HINTS = {
    "s3": "write s3a:// for S3",
    "gs": "no server here takes what deltalake writes, so it is untested: mount it as a path that every node has",
    **dict.fromkeys(
        ("abfs", "abfss", "wasb", "wasbs"),
        "Hadoop's connector does not work with a server that can be had here, so it is untested: mount it as a path that every node has",
    ),
}


def find_store(location: str) -> Store | None:
    """Find the kind of store of a location; None for a path of this machine.

    Raises:
        UsageError: a scheme that is not supported, or no bucket.
    """
    match = SCHEME.match(location)
    scheme = match[1].lower() if match else "file"
    if scheme == "file":
        return None
    if scheme not in STORES:
        hint = _HINTS.get(scheme, "mount it as a path that every node has, or use a store with S3's interface")
        supported = ", ".join(f"{name}://" for name in sorted(STORES))
        raise UsageError(
            f"{location}: {scheme}:// is not supported; supported are a mounted path (local or shared), and {supported} ({hint})"
        )
    if not re.match(r"[^:]+://[^/]", location):
        raise UsageError(f"{location} names no bucket or name node: expected {STORES[scheme].example}")
    return STORES[scheme]


_REFUSALS: tuple[tuple[str, str], ...] = (
    (
        r"Permission denied: user=(?P<who>[^,\s]+), access=(?P<what>\w+), inode=\\?\"(?P<where>[^\"\\]+)",
        "HDFS allows {who} no {what} on {where}: give that user the right (hdfs dfs -chown, -chmod, -setfacl), or run as another one "
        "(Kerberos ticket, HADOOP_USER_NAME)",
    ),
    (
        r"The (?P<what>\w+ ?\w* quota)[^\"\\]*? of (?P<where>\S+) is exceeded",
        "the {what} of {where} in HDFS is used up, and what was being written is not in any table: raise it (hdfs dfsadmin), or make room "
        "with recsys-batch maintain, and run the same command again",
    ),
    (
        r"Cannot [^\"\\]{0,200}?(?P<where>/\S+)\. Name node is in safe mode",
        "HDFS is read-only now (safe mode), at {where}: wait until the name node leaves it, and run the same command again",
    ),
    (
        r"NO_SUCH_BUCKET|NoSuchBucket",
        "the bucket does not exist: make it first, or correct paths.warehouse",
    ),
    (
        r"ACCESS_DENIED|AccessDenied|InvalidAccessKeyId|INVALID_ACCESS_KEY_ID|SignatureDoesNotMatch",
        "the store refused this process's credentials or rights: see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and the "
        "rights on the prefix (docs/object-store.md)",
    ),
)


def explain_refusal(error_text: str) -> str | None:
    """Explain in a sentence why a store refused something, from any library's error text; None where it is none that is known."""
    for pattern, sentence in _REFUSALS:
        match = re.search(pattern, error_text)
        if match:
            return sentence.format(**match.groupdict())
    return None
