"""`python -m workflow FD`: runs the script whose frames come over a stream socket, for trying the library by hand."""

import sys

from .runtime import main

sys.exit(main(int(sys.argv[1])))
