"""What tokens become that a step does not compute: their predictions, and their keys and values.

A rule (`Reuse`, in base.py) starts a memory for each guidance branch: `Hold`, `Taylor` (forecasts along a line or a
parabola), `ClusterCorrection`. key_value.py keeps keys and values, linear_key_value.py lets them move on. Imports
`tokenprune.ops`, `tokenprune.errors`. A new rule is a file here and a line below. Start with `base.py`.
"""

from tokenprune.reuse.base import Hold, Reuse, ReuseState
from tokenprune.reuse.cluster_correction import ClusterCorrection
from tokenprune.reuse.taylor import Taylor

__all__ = ["ClusterCorrection", "Hold", "Reuse", "ReuseState", "Taylor"]
