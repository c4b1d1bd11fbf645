"""`python -m ray_jobs VERB ...`: how `terrafm submit` runs a verb on a cluster."""

import json
import os
import sys

from terrafm.clusters.versions import VERSIONS_VARIABLE, differences, own_versions


def main(words: list[str]) -> None:
    """Compares versions, then runs the verb; ends the process as `terrafm` does."""
    submitted_with = os.environ.get(VERSIONS_VARIABLE)
    if submitted_with and (told := differences(json.loads(submitted_with), own_versions())):
        sys.stderr.write(f"terrafm: error: {told}\n")
        sys.exit(2)
    # Only now: with other versions this may fail in any way.
    from terrafm.cli import main as terrafm

    terrafm(words)


if __name__ == "__main__":
    main(sys.argv[1:])
