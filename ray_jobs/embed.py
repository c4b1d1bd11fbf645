"""`terrafm embed` as the entry point of a Ray job: the same options."""

import sys

from terrafm.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
