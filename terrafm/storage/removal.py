"""Files of a store removed by their exact names.

`rm` of fsspec takes `[ ] * ?` in a name for a pattern and removes what it matches, neighbours
too. The calls used here take names as they are.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

# What S3 takes in one request.
_BULK = 1000
_THREADS = 3


def erase(filesystem: Any, path: str) -> None:
    """Removes a file and all that lies below it as a folder; nothing happens where nothing is.

    Args:
        filesystem: of fsspec, not this machine's.
        path: inside it.

    Raises:
        Exception: of the library; see `terrafm.storage.faults`.
    """
    found = filesystem.find(path, withdirs=True, detail=True)
    files = {name for name, entry in found.items() if entry["type"] != "directory"}
    if path not in files and _is_object(filesystem, path):
        # A store may have both: `find` lists the one or the other.
        files.add(path)
    erase_files(filesystem, sorted(files))
    if not filesystem.async_impl:
        for folder in sorted(found.keys() - files, reverse=True):
            # Some know folders only as long as files lie in them.
            with suppress(FileNotFoundError):
                filesystem.rmdir(folder)


def erase_files(filesystem: Any, paths: list[str]) -> None:
    """Removes files, many with one request where the store can; those that are gone are passed.

    Raises:
        Exception: of the library; see `terrafm.storage.faults`.
    """
    if "s3" in filesystem.protocol:
        _erase_objects(filesystem, paths)
        return

    def erase_one(path: str) -> None:
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)

    # Other clients wait for each other in one thread of their own.
    with ThreadPoolExecutor(_THREADS if filesystem.async_impl else 1) as pool:
        list(pool.map(erase_one, paths))


def _is_object(filesystem: Any, path: str) -> bool:
    try:
        return bool(filesystem.info(path)["type"] == "file")
    except FileNotFoundError:
        return False


def _erase_objects(filesystem: Any, names: list[str]) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    def erase_some(start: int) -> None:
        some = [name.partition("/") for name in names[start : start + _BULK]]
        answer = filesystem.call_s3(
            "delete_objects",
            Bucket=some[0][0],
            Delete={"Objects": [{"Key": key} for _, _, key in some], "Quiet": True},
        )
        # The request succeeds although some of its objects stay: s3fs overlooks them.
        for refused in answer.get("Errors", []):
            error = ClientError({"Error": refused}, "DeleteObjects")
            raise translate_boto_error(error) from error

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(erase_some, range(0, len(names), _BULK)))
