"""Byte ranges of files, one request each: from a disk, from S3, from any other store.

S3 is read through obstore: of three clients (8 tiles of 5 MB in flight, 4 ranges each, 20 ms of
latency) it took 0.75 CPU seconds for a gigabyte, pyarrow 1.3 and s3fs 2.2, and the CPUs that read
are those that decode. Address and credentials are those that s3fs finds, so that one set of
rules holds for all of TerraFM.
"""

import os
from datetime import timedelta
from functools import lru_cache
from typing import Any, Protocol

from fsspec.asyn import sync

from terrafm.errors import UsageError
from terrafm.storage import is_local, resolve
from terrafm.storage.faults import STALL_SECONDS
from terrafm.storage.local import open_descriptor

_OPEN_FILES = 128


class Ranges(Protocol):
    """Reads byte ranges of the files in a folder; safe in several threads.

    Attributes:
        local: the folder is on a disk of this machine.
    """

    local: bool

    def read(self, name: str, start: int, stop: int) -> bytes | memoryview:
        """Bytes [start, stop) of a file, fewer where it ends before; one attempt.

        Raises:
            FileNotFoundError: there is no such file.
            Exception: of the library; see `terrafm.storage.faults`.
        """
        ...


def open_ranges(uri: str) -> Ranges:
    """The reader of a folder."""
    return _LocalRanges(resolve(uri)[1]) if is_local(uri) else _open_store(uri)


# One for all readers of this process, which share its connections.
@lru_cache(maxsize=32)
def _open_store(uri: str) -> Ranges:
    if uri.startswith(("s3://", "s3a://")):
        return _S3Ranges(uri)
    return _OtherRanges(uri)


class _LocalRanges:
    local = True

    def __init__(self, root: str) -> None:
        self._root = root
        self._open = lru_cache(maxsize=_OPEN_FILES)(_Descriptor)

    def read(self, name: str, start: int, stop: int) -> bytes:
        file = self._open(f"{self._root}/{name}")
        return os.pread(file.number, stop - start, start)


class _OtherRanges:
    local = False

    def __init__(self, uri: str) -> None:
        self._filesystem, self._root = resolve(uri)

    def read(self, name: str, start: int, stop: int) -> bytes:
        content: bytes = self._filesystem.cat_file(f"{self._root}/{name}", start=start, end=stop)
        return content


class _S3Ranges:
    local = False

    def __init__(self, uri: str) -> None:
        # Imported where it is needed: local datasets do without.
        from obstore.exceptions import GenericError, NotFoundError
        from obstore.store import S3Store

        self._not_found, self._fault = NotFoundError, GenericError
        filesystem, path = resolve(uri)
        bucket, _, self._root = path.partition("/")
        filesystem.connect()
        client = filesystem.s3.meta
        options: dict[str, Any] = {"region": client.region_name or "us-east-1"}
        if ".amazonaws.com" not in client.endpoint_url:
            options |= {"endpoint": client.endpoint_url, "virtual_hosted_style_request": False}
        if filesystem.anon:
            options["skip_signature"] = True
        else:
            options["credential_provider"] = _Credentials(filesystem, uri)
        if filesystem.requester_pays:
            options["request_payer"] = True
        stall = timedelta(seconds=STALL_SECONDS)
        self._store = S3Store(
            bucket,
            client_options={"allow_http": True, "connect_timeout": stall, "read_timeout": stall,
                            "timeout": timedelta(hours=1)},
            # Repeated by us, under the same rule as every other store.
            retry_config={"max_retries": 0},
            **options,
        )  # fmt: skip

    def read(self, name: str, start: int, stop: int) -> memoryview:
        path = f"{self._root}/{name}" if self._root else name
        try:
            return memoryview(self._store.get_range(path, start=start, end=stop))
        except self._not_found as error:
            raise FileNotFoundError(str(error)) from None
        except self._fault as error:
            # The file ends before the range begins, or inside it.
            if "416 Range Not Satisfiable" in str(error) or "Wanted range" in str(error):
                return memoryview(b"")
            raise


class _Credentials:
    """Credentials as botocore finds them: environment, profile, instance role."""

    def __init__(self, filesystem: Any, uri: str) -> None:
        self._filesystem, self._uri = filesystem, uri

    def __call__(self) -> dict[str, Any]:
        return sync(self._filesystem.loop, self._find)  # type: ignore[no-any-return]

    async def _find(self) -> dict[str, Any]:
        own = self._filesystem
        if own.key and own.secret:
            return _credential(own.key, own.secret, own.token, None)
        found = await own.session.get_credentials()
        if found is None:
            raise UsageError(
                f"cannot read {self._uri}: no credentials: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY or a profile, or FSSPEC_S3_ANON=true for a public bucket"
            )
        frozen = await found.get_frozen_credentials()
        # Set where they are renewed in time.
        expiry = getattr(found, "_expiry_time", None)
        return _credential(frozen.access_key, frozen.secret_key, frozen.token, expiry)


def _credential(key: str, secret: str, token: str | None, expiry: Any) -> dict[str, Any]:
    return {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": token,
        "expires_at": expiry,
    }


class _Descriptor:
    """An open file that closes when it is dropped from the cache."""

    def __init__(self, path: str) -> None:
        self.number = open_descriptor(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
