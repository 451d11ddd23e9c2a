"""``python -m planescope``."""

import os
import sys

# With -m the working folder stands before all else on the import path: a file in it of a
# library's name, in a folder that may be anybody's, would run in place of the library.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109
    del sys.path[0]

from planescope.cli import main

main()
