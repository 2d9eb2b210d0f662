"""Tokens that are not computed follow the computed ones of their cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokenprune.ops.damping import Damping
from tokenprune.ops.guidance import Guidance
from tokenprune.ops.kmeans import kmeans, memberships
from tokenprune.ops.selection import Selection
from tokenprune.reuse.base import Hold, Reuse, ReuseState
from tokenprune.reuse.key_value import KeyValueBuffer

MEMORY = 0.8
"""How much of what the damping was learnt from is kept from one pruned step to the next."""


@dataclass(frozen=True)
class ClusterCorrection(Reuse):
    """Correct another rule's forecast by what the computed tokens of a cluster showed it to be off.

    After ClusCa (Zheng et al., Compute Only 16 Tokens in One Timestep, arXiv 2509.10312). The tokens of every image,
    of each guidance half on its own, are clustered by k-means on the prediction of the last full step. At a pruned
    step the forecast errors fresh - forecast of the computed tokens are averaged over each cluster, and a token that is
    not computed becomes

        forecast + d * strength * (mean forecast error of its cluster),

    or its forecast, where no token of its cluster was computed. The inner rule remembers what was computed, never a
    correction. `memory` keeps that part of a token's correction for its next forecast, until it is computed.

    The damping d, one for each image, is what the correction would have been worth to the computed tokens
    themselves: the factor, by least squares and within [0, 1], of the mean error of the *other* computed tokens of
    a cluster in a token's own. It is learnt from the step itself and, fading, the ones before; 1 while no cluster
    had two computed tokens.

    Differences: ClusCa blends the cluster's mean feature itself into its tokens', in each layer, with a small fixed
    factor (0.005 in a public example script); adding an error leaves the differences between tokens of a cluster
    alone. Damping and memory are ours.

    Cost: k-means at the first pruned step after each full one; some K B N C multiplications at each pruned step.
    Memory: a label for every token, a prediction until it is clustered, and a correction [B, N, C] where memory > 0.

    Args:
        inner: the rule that forecasts.
        num_clusters: K, at least 1; 16 in ClusCa's title.
        strength: factor of the correction, 0 to 1.
        damped: False keeps d at 1.
        memory: fraction of a correction that lasts to the next step, 0 to 1.
        seed: seed of the k-means start.

    Raises:
        ValueError: an argument is out of its range.
    """

    inner: Reuse = field(default_factory=Hold)
    num_clusters: int = 16
    strength: float = 1.0
    damped: bool = True
    memory: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters: expected a whole number of at least 1, got {self.num_clusters!r}")
        for name in ("strength", "memory"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a fraction in [0, 1], got {getattr(self, name)}")

    def start(self, guidance: Guidance = "none") -> ReuseState:
        """Fresh memory: the inner rule's, and clusters."""
        return _CorrectedState(self, guidance)

    def start_keys(self, guidance: Guidance = "none", depth: float = 0.0) -> KeyValueBuffer:
        """The inner rule's: keys and values are not corrected."""
        return self.inner.start_keys(guidance, depth)


class _CorrectedState(ReuseState):
    """`unclustered`: the last full prediction [B, N, C] while its clusters are unknown; then `labels` [B, N].

    `offset` [B, N, C]: what is left of earlier corrections; None for 0. `damping`: how far errors follow the mean
    of the others in their cluster.
    """

    def __init__(self, rule: ClusterCorrection, guidance: Guidance) -> None:
        self._rule = rule
        self._inner = rule.inner.start(guidance)
        self._unclustered: Tensor | None = None
        self._labels: Tensor | None = None
        self._offset: Tensor | None = None
        self._damping = Damping(guidance, unknown=1.0, memory=MEMORY)

    def record(self, prediction: Tensor, time: float) -> None:
        self._inner.record(prediction, time)
        self._unclustered, self._labels, self._offset = prediction.clone(), None, None

    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        expected = selection.gather(self.forecast(time).float())
        forecast_error = (fresh.float() - expected).nan_to_num(0.0, 0.0, 0.0)
        offset = self._correction(forecast_error, selection)
        if self._offset is not None:
            offset = offset + self._offset
        inner = self._inner.complete(fresh, selection, time)
        offset = offset.masked_fill(selection.mask().unsqueeze(-1), 0)
        if self._rule.memory > 0:
            self._offset = self._rule.memory * offset
        return selection.scatter(fresh, (inner.float() + offset).to(fresh.dtype))

    def forecast(self, time: float) -> Tensor:
        forecast = self._inner.forecast(time)
        return forecast if self._offset is None else (forecast.float() + self._offset).to(forecast.dtype)

    @property
    def nbytes(self) -> int:
        own = (self._unclustered, self._labels, self._offset)
        return self._inner.nbytes + sum(tensor.nbytes for tensor in own if tensor is not None)

    def _correction(self, forecast_error: Tensor, selection: Selection) -> Tensor:
        """Damped mean [B, N, C] of the forecast errors [B, n, C] in every token's cluster; 0 where there are none."""
        labels = self._clusters()
        chosen = selection.gather(labels)
        members = memberships(chosen, self._rule.num_clusters).to(forecast_error.dtype)
        sums, sizes = members @ forecast_error, members.sum(-1, keepdim=True)
        correction = self._rule.strength * _of_clusters(sums / sizes.clamp_min(1), labels)
        if not self._rule.damped:
            return correction
        others = _of_clusters(sizes, chosen) - 1
        leading = (_of_clusters(sums, chosen) - forecast_error) / others.clamp_min(1) * (others > 0)
        self._damping.learn(forecast_error, leading)
        return self._damping.factor * correction

    def _clusters(self) -> Tensor:
        if self._labels is None:
            if self._unclustered is None:
                raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
            features = self._unclustered.float().nan_to_num()
            self._labels = kmeans(features, min(self._rule.num_clusters, features.shape[1]), self._rule.seed)
            self._unclustered = None
        return self._labels


def _of_clusters(values: Tensor, labels: Tensor) -> Tensor:
    """The values [B, K, C] of the clusters that tokens [B, n] belong to: [B, n, C]."""
    return values.gather(1, labels.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
