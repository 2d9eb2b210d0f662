"""Methods of other packages, as a user would run them, on the pipeline that is measured: see docs/peers.md."""

from __future__ import annotations
