"""`python -m terrafm`: the same as the command `terrafm`."""

from terrafm.cli import main

main()
