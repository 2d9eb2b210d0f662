"""What tokens become that a step does not compute: their predictions, and their keys and values.

A rule (`Reuse`, in base.py) starts a memory for each guidance branch: `Hold`, `Taylor` (forecasts along a line or a
parabola), `ClusterCorrection`. corrector.py says how their effect on the latents is made good. key_value.py keeps keys
and values, linear_key_value.py lets them move on. Imports
`tokenprune.ops`, `tokenprune.errors`. A new rule is a file here and a line below. Start with `base.py`.
"""

from tokenprune.reuse.base import Hold, Reuse, ReuseState
from tokenprune.reuse.cluster_correction import ClusterCorrection
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor

__all__ = ["ClusterCorrection", "Corrector", "Hold", "Reuse", "ReuseState", "Taylor"]
