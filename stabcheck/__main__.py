"""`python -m stabcheck` is `stabcheck`."""

import sys

from stabcheck.cli import main

sys.exit(main())
