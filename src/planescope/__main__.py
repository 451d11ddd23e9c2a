"""``python -m planescope``."""

from planescope.cli import main

main()
