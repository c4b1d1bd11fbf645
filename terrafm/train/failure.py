"""What workers leave in a run's folder where the run cannot go on."""

from __future__ import annotations

from dataclasses import dataclass

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import join, load_record, to_json, write_bytes

FAILURE_FILE = "failure.json"


@dataclass(frozen=True)
class _Failure:
    message: str
    code: int


def write_failure(output: str, error: TerraFMError) -> None:
    """Leaves word in a folder of a failure that would only repeat itself."""
    document = {"message": str(error), "code": error.exit_code}
    write_bytes(join(output, FAILURE_FILE), to_json(document).encode())


def read_failure(output: str) -> TerraFMError | None:
    """The failure that workers left in a run's folder."""
    uri = join(output, FAILURE_FILE)
    remedy = "the workers failed, and what they left as the reason was cut short"
    found = load_record(uri, _Failure, remedy)
    if found is None:
        return None
    error = TerraFMError(found.message)
    error.exit_code = 2 if found.code == UsageError.exit_code else 1
    return error
