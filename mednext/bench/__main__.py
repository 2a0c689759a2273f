"""``python -m mednext.bench``: the harness without the packages of the `mednext` command."""

import sys

from mednext.bench.command import main

sys.exit(main())
