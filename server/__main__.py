"""`python -m turbosparse.server` is `turbosparse`."""

import sys

from .cli import main

sys.exit(main())
