"""What a weights file claims to hold against the bytes it has, before a library loads it."""

import io
import zipfile

from terrafm.storage import check_json
from terrafm.storage.faults import one_line
from terrafm.storage.limits import DOCUMENT_BYTES

_ZIP, _PICKLE = b"PK", b"\x80"


def is_pickled(content: bytes) -> bool:
    """Whether weights are of the form that `torch.save` writes, now or formerly."""
    return content.startswith((_ZIP, _PICKLE)) and not _has_header(content)


def _has_header(content: bytes) -> bool:
    """Whether it begins as safetensors do: with a length that may begin as a zip or pickle does."""
    return content[4:8] == bytes(4) and content[8:9] == b"{"


def check_weights(content: bytes) -> None:
    """Refuses a file of weights that stands for more than its own bytes.

    Raises:
        ValueError: parts of it are compressed, overlap, or make memory out of a number; or its
            header is too large.
    """
    if is_pickled(content):
        (_check_zip if content.startswith(_ZIP) else _check_pickle)(content)
    else:
        length = int.from_bytes(content[:8], "little")
        if length > len(content):
            # No such file: its library says what is wrong.
            return
        if length > DOCUMENT_BYTES:
            raise ValueError(f"its header claims {length:,} bytes, more than {DOCUMENT_BYTES:,}")
        check_json(content[8 : 8 + length])


def _check_zip(content: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            pickles = b"".join(_stored(archive, part) for part in parts if _is_pickle(part))
    except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere in the parser
        raise ValueError(f"they are damaged: {one_line(error)}") from None
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("its parts are compressed, as torch.save never does")
    if sum(part.file_size for part in parts) > len(content):
        raise ValueError("its parts overlap, and claim more bytes than it has")
    _check_pickle(pickles)


def _is_pickle(part: zipfile.ZipInfo) -> bool:
    return part.filename.endswith(".pkl")


def _stored(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bytes:
    # What is compressed is refused as a whole.
    return archive.read(part) if part.compress_type == zipfile.ZIP_STORED else b""


def _check_pickle(content: bytes) -> None:
    # torch calls it with whatever number stands in the file, `weights_only` or not.
    if b"bytearray" in content:
        raise ValueError("it makes memory out of a number (bytearray), as no state dict does")
