#!/usr/bin/env bash
# hdfs-native 0.14.7 with pyarrow 25.0.1: files of HDFS that pyarrow lists through hdfs_native.fsspec have no modification time.
#
# pyarrow takes any fsspec file system, and its FSSpecHandler reads a file's time from the key "mtime", as fsspec's local, SFTP and other
# file systems write it. hdfs_native.fsspec says "modification_time", in milliseconds. No error: FileInfo.mtime is None, and what removes
# or takes files by their age sees none that is old. HdfsFileSystem.modified() gives a time of the process's own zone without saying so.
# Override _convert_file_status and add "mtime", in seconds.
#
# Needs no HDFS: what a name node says of a file is made up here. Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'hdfs-native==0.14.7' 'pyarrow==25.0.1' 'fsspec==2026.9.0'
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem
from hdfs_native.fsspec import HdfsFileSystem

names = ("path", "length", "isdir", "permission", "owner", "group", "modification_time", "access_time")
status = SimpleNamespace(**dict(zip(names, ("/file", 3, False, 0o644, "me", "us", 1_700_000_000_000, 0))))
of_hdfs = HdfsFileSystem._convert_file_status(None, status)
of_local = LocalFileSystem().info(__import__("sys").executable)
times = [pyarrow.fs.FSSpecHandler._create_file_info("/file", info).mtime for info in (of_hdfs, of_local)]
print(f"hdfs-native {version('hdfs-native')}, pyarrow {pyarrow.__version__}, fsspec {version('fsspec')}")
print(f"keys of a file of HDFS: {sorted(of_hdfs)}")
print(f"pyarrow's mtime of it: {times[0]}; of a local file through fsspec: {times[1]}")
sys.exit(0 if times[0] is None and times[1] is not None and "mtime" not in of_hdfs else "this has changed")
PYTHON
