"""`python -m callscope`: the command line without its script."""

import sys

from callscope.cli.main import main

sys.exit(main())
