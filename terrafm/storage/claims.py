"""What a file claims to hold against the bytes it has: memory is not given for the asking."""

from terrafm.storage.limits import HARMLESS_BYTES, MOST_TIMES, SUSPICIOUS_BYTES, USUAL_TIMES


def check_claim(claimed: int, stored: int, what: str = "pixels", usual: int = USUAL_TIMES) -> None:
    """Refuses data that so few bytes cannot hold, before memory is taken for them.

    Args:
        claimed: bytes of the data once they are decoded.
        stored: bytes that they are decoded from.
        what: the data, for the message.
        usual: times that such data shrinks to at most where it was measured.

    Raises:
        ValueError: more than 256 MiB and more than 5000 times what is stored, or more than 1 GiB
            and more than the usual times what is stored.
    """
    if claimed <= max(HARMLESS_BYTES, usual * stored):
        return
    if claimed > MOST_TIMES * stored:
        raise ValueError(f"{stored:,} bytes cannot hold the {claimed:,} bytes of {what} it claims")
    if claimed > SUSPICIOUS_BYTES:
        raise ValueError(
            f"{stored:,} bytes claim {claimed:,} bytes of {what}, which is more than is decoded of "
            "a file that is almost constant: cut it into smaller ones"
        )
