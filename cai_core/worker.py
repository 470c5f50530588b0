"""``python -m cai_core.worker JOB``: the entry of worker processes."""

from __future__ import annotations

import sys

from cai_core.pipeline.worker import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
