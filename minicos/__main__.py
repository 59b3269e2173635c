"""`python -m minicos` is the command `minicos`."""

import sys

from minicos.cli import main

sys.exit(main())
