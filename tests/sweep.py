"""Whether the slow tests run too, as `make sweep` has them."""

from __future__ import annotations

import os

SLOW = bool(os.environ.get("GRAFT_SWEEP"))
