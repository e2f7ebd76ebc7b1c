"""List the files of a path: a file, a folder with all below it, or a glob. Hidden files (a dot or _ in front) are left out."""

import re

from pyarrow import fs

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import SourceFile
from recsys_batch.storage.filesystems import absolute, resolve

NO_PATH = "does not exist: expected a file, a folder of files or a glob"
NO_FILE = "holds no data file: names that begin with _ or a dot, and empty files, are not read"
_GLOB = re.compile(r"[*?\[{]")


def list_source_files(path: str) -> list[SourceFile]:
    """List every visible file under ``path`` that is not empty, sorted by location.

    Raises SourceError where the path does not exist, cannot be opened or has no data file; UsageError where its scheme is unknown.
    """
    root = absolute(path)
    filesystem, inside = resolve(root)
    prefix = root[: len(root) - len(inside)]
    try:
        matches = _expand(filesystem, inside)
        infos = [info for match in matches for info in _list_below(filesystem, match)]
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error}") from None
    if not matches:
        raise SourceError(f"{path} {NO_PATH}")
    folder = listed_folder(root)
    files = {f"{prefix}{info.path}": int(info.size or 0) for info in infos if info.size}
    if not files:
        raise SourceError(f"{path} {NO_FILE}")
    return [SourceFile(location, n_bytes, folder) for location, n_bytes in sorted(files.items())]


def listed_folder(root: str) -> str:
    """Name the folder below which names like column=value are columns: of a glob the one before its first pattern."""
    pattern = _GLOB.search(root)
    return root.rstrip("/") if pattern is None else root[: pattern.start()].rpartition("/")[0]


def _expand(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """Find what a path or a glob (*, ?, [...], {a,b}, none of which matches a slash) names."""
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.NotFound:
        return [info]
    if not _GLOB.search(path):
        return []
    first = next(i for i, part in enumerate(path.split("/")) if _GLOB.search(part))
    parts = path.split("/")
    found = ["/".join(parts[:first])]
    for part in parts[first:]:
        pattern = re.compile(_glob_regex(part))
        names = (info.path for folder in found for info in filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)))
        found = sorted(name for name in names if pattern.fullmatch(name.rpartition("/")[2]) and not _is_hidden(name.rpartition("/")[2]))
    return list(filesystem.get_file_info(found)) if found else []


def _list_below(filesystem: fs.FileSystem, match: fs.FileInfo) -> list[fs.FileInfo]:
    if match.type == fs.FileType.File:
        return [match]
    infos = filesystem.get_file_info(fs.FileSelector(match.path, recursive=True))
    below = len(match.path.rstrip("/")) + 1
    return [info for info in infos if info.type == fs.FileType.File and not any(map(_is_hidden, info.path[below:].split("/")))]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _glob_regex(part: str) -> str:
    """Translate one part of a glob; {a,b} is a choice, [!a] is none of these."""
    regex, depth = "", 0
    i = 0
    while i < len(part):
        character = part[i]
        if character == "*":
            regex += "[^/]*"
        elif character == "?":
            regex += "[^/]"
        elif character == "[" and "]" in part[i + 1 :]:
            end = part.index("]", i + 2) if part[i + 1 : i + 2] in ("]", "!") and "]" in part[i + 2 :] else part.index("]", i + 1)
            inside = part[i + 1 : end].replace("\\", "\\\\")
            regex += f"[{'^' + inside[1:] if inside[:1] in ('!', '^') else inside}]"
            i = end
        elif character == "{":
            regex, depth = f"{regex}(?:", depth + 1
        elif character == "}" and depth:
            regex, depth = f"{regex})", depth - 1
        elif character == "," and depth:
            regex += "|"
        else:
            regex += re.escape(character)
        i += 1
    return regex + ")" * depth
