"""Steps that went wrong: how many are forgiven before the run stops."""

from terrafm.errors import TerraFMError


class SkipLimit:
    """Counts steps skipped for infinite or NaN gradients.

    Args:
        limit: steps in a row that are forgiven.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self.total = 0

    def record(self, applied: bool, step: int) -> None:
        """Notes a step's outcome; equal on all ranks.

        Raises:
            TerraFMError: too many steps in a row were skipped.
        """
        if applied:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        if self._in_a_row > self._limit:
            raise TerraFMError(
                f"step {step}: gradients were not finite {self._in_a_row} times in a row; "
                "lower optim.base_lr, or look for broken tiles with terrafm inspect"
            )
