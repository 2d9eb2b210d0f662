"""What happened to every token at every step: recorded on request, and read afterwards.

While a generation runs, everything stays on the model's device and nothing waits for it; a tensor is copied to the
CPU when it is first read. Without `apply(..., trace=True)` none of this exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenprune.ops.grid import TokenGrid
from tokenprune.ops.selection import Selection
from tokenprune.reports.html import facts, folded
from tokenprune.reports.records import StepRecord
from tokenprune.reports.report import STEP_COLUMNS, StepReport, step_cells
from tokenprune.units import memory_in_words

LABELS = "labels"
"""Where policies keep cluster labels in their memory; a policy inside another one has a prefix and a dot before it."""


@dataclass
class TokenRecord:
    """One step's tensors on the device, as they come; None for what there is not (yet).

    Attributes:
        age: steps since each token was last computed, before the step [B, N].
        selection: the computed tokens of a pruned step.
        ran: whether the model computed tokens; False at a skipped step.
        forecast_error: ||fresh - forecast||_2 of the computed tokens [B, n].
        prediction: the step's whole prediction as policies see it [B, N, C]; it comes last.
        relative_noise: its distance from the branch's reference [B, N].
        labels: cluster labels [B, N] by their key in the policy's memory.
    """

    age: Tensor | None
    selection: Selection | None = None
    ran: bool = False
    forecast_error: Tensor | None = None
    prediction: Tensor | None = None
    relative_noise: Tensor | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        index = None if self.selection is None else self.selection.index
        tensors = (self.age, index, self.forecast_error, self.prediction, self.relative_noise, *self.labels.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Recorder:
    """Keeps one `TokenRecord` for every step of a generation, in step with its `StepRecord`s."""

    def __init__(self) -> None:
        self._tokens: list[TokenRecord] = []

    def begin_step(self, age: Tensor | None, memory: dict[str, Tensor]) -> None:
        """Open a step: ages [B, N] before it (None at the first), the policy's memory if it has just selected."""
        found = {key: tensor for key, tensor in memory.items() if key.rpartition(".")[2] == LABELS}
        self._tokens.append(TokenRecord(age, labels={key: tensor.clone() for key, tensor in found.items()}))

    def note(self, selection: Selection | None, forecast_error: Tensor | None) -> None:
        """Take in what was computed: the selected tokens (None: all), and their forecast errors [B, n]."""
        record = self._tokens[-1]
        record.ran, record.selection, record.forecast_error = True, selection, forecast_error

    def end_call(self, prediction: Tensor, reference: Tensor) -> None:
        """Take in the whole prediction after a call, and what it is relative to, [B, N, C] both."""
        record = self._tokens[-1]
        record.prediction = prediction.detach().clone()
        record.relative_noise = (prediction - reference).float().nan_to_num().norm(dim=-1)

    def trace(self, steps: Sequence[StepRecord], grid: TokenGrid) -> Trace:
        """What is recorded so far; later steps do not change it."""
        pairs = zip(steps, self._tokens, strict=True)
        done = [(step, tokens) for step, tokens in pairs if tokens.prediction is not None]
        return Trace(tuple(TraceStep(step.report(), replace(tokens)) for step, tokens in done), grid)


@dataclass(frozen=True, eq=False)
class TraceStep:
    """One step. B images, N tokens, n computed ones, C channels of noise per token; every tensor is on the CPU.

    Attributes:
        report: its timestep, how many tokens it computed, its seconds.
    """

    report: StepReport
    _tokens: TokenRecord = field(repr=False)

    @cached_property
    def computed(self) -> Tensor:
        """Which tokens the step computed [B, N], bool: all at a full step, none at a skipped one."""
        selection = self._tokens.selection
        whole = torch.full(self.prediction.shape[:2], self._tokens.ran)
        return whole if selection is None else Selection(selection.index.cpu(), selection.num_tokens).mask()

    @property
    def index(self) -> Tensor:
        """The same as sorted indices [B, n], int64."""
        return self.computed.nonzero()[:, 1].view(len(self.computed), -1)

    @cached_property
    def age(self) -> Tensor:
        """Steps since each token was last computed [B, N], int32, before the step; 1 after a full step and at first."""
        age = self._tokens.age
        return torch.ones(self.prediction.shape[:2], dtype=torch.int32) if age is None else age.cpu()

    @property
    def staleness(self) -> Tensor:
        """How old the prediction of each token is that the sampler got [B, N], int32: 0 where the step computed it."""
        return self.age.masked_fill(self.computed, 0)

    @cached_property
    def prediction(self) -> Tensor:
        """The whole prediction [B, N, C] that the step ended with, reused rows included, as policies see it."""
        if self._tokens.prediction is None:
            raise RuntimeError("a step is traced when it has a prediction")
        return self._tokens.prediction.cpu()

    @cached_property
    def relative_noise(self) -> Tensor:
        """||RN||_2 of that prediction [B, N], float32: its distance from the reference that policies see next.

        After a pruned step that is the prediction of the step before the last full one (CAT Pruning, section 3.2),
        after a full step the prediction before it.
        """
        if self._tokens.relative_noise is None:
            raise RuntimeError("a step is traced when it has a prediction")
        return self._tokens.relative_noise.cpu()

    @cached_property
    def forecast_error(self) -> Tensor | None:
        """||fresh - forecast||_2 [B, N], float32, of the tokens computed, NaN of all others.

        None at a generation's first step, which has no forecast, and at skipped steps. The forecast reached `age`
        steps ahead, so age and forecast error of a token say how the error grows with the gap.
        """
        if self._tokens.forecast_error is None:
            return None
        found = self._tokens.forecast_error.cpu()
        return torch.full(self.computed.shape, float("nan")).masked_scatter(self.computed, found)

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        """Cluster labels [B, N] that the step's selection went by, by their key in the policy's memory.

        "labels" for a policy of its own, "inner.labels" inside a `RegionPolicy`, "0.labels" for the first part of a
        `MixturePolicy`; empty at full and skipped steps, and for policies that keep none.
        """
        return {key: labels.cpu() for key, labels in self._tokens.labels.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that the step holds on the device."""
        return self._tokens.nbytes


@dataclass(frozen=True, eq=False)
class Trace:
    """The latest generation, step by step.

    Tracing keeps B N (C e + 8) + 12 B n bytes a step on the model's device, with e bytes per number of the prediction,
    and 8 B N for each set of labels. All of it is freed when the handle's next generation begins, or with handle and
    trace. A report's `cache_bytes` do not count it. What was read stays on the CPU as long as the trace.

    Attributes:
        steps: every step that ended, in order.
        grid: extents of the token grid.
    """

    steps: tuple[TraceStep, ...]
    grid: TokenGrid

    @property
    def computed(self) -> Tensor:
        """Which of the S steps computed which token [S, B, N], bool."""
        masks = [step.computed for step in self.steps]
        return torch.stack(masks) if masks else torch.zeros(0, 0, 0, dtype=torch.bool)

    def relative_noise_to(self, reference: int) -> Tensor:
        """||n_i - n_r||_2 of every step i [S, B, N], float32, with n_r the prediction of step `reference`.

        CAT Pruning (arXiv 2502.00433), section 3.2, with a reference of your choice; also for full steps.

        Raises:
            IndexError: there is no such step.
        """
        if not 0 <= reference < len(self.steps):
            raise IndexError(f"reference: expected a step from 0 to {len(self.steps) - 1}, got {reference}")
        base = self.steps[reference].prediction.float()
        return torch.stack([(step.prediction.float() - base).norm(dim=-1) for step in self.steps])

    def save_html(
        self,
        path: str | Path,
        *,
        picture: Any = None,
        dense: Any = None,
        previews: Mapping[int, Any] | None = None,
        name: str = "pruned",
        title: str = "Token pruning, step by step",
    ) -> None:
        """Write a page that shows every step, for any browser: `tokenprune.reports.viewer.save_html` of this one run.

        Args:
            path: the file, ending in .html.
            picture: what was drawn: pictures of PIL, arrays or tensors, one for each image; or a video's frames.
            dense: the plain model's picture of the same prompt and noise.
            previews: pictures of steps, by step; `tokenprune.reports.viewer.Previews` makes them.
            name: what to call the run, such as its policy.
            title: of the page, such as the prompt.

        Raises:
            ConfigurationError: the path cannot be written, the extra `viewer` is not installed, or pictures do not fit.
            TraceError: no step has ended.
        """
        from tokenprune.reports.viewer import Run, save_html

        save_html(path, {name: Run(self, picture, previews or {})}, dense=dense, title=title)

    @property
    def nbytes(self) -> int:
        """Bytes that the trace holds on the device."""
        return sum(step.nbytes for step in self.steps)

    def __str__(self) -> str:
        images, tokens = self._images, "x".join(map(str, self.grid))
        many = "image" if images == 1 else "images"
        return f"{len(self.steps)} steps, {images} {many} of {tokens} tokens, {memory_in_words(self.nbytes)}"

    def __repr__(self) -> str:
        return f"Trace({self})"

    def _repr_html_(self) -> str:
        rows = [
            ("steps", len(self.steps)),
            ("images", self._images),
            ("token grid", " x ".join(map(str, self.grid))),
            ("memory", memory_in_words(self.nbytes)),
            ("to look at it", 'trace.save_html("run.html")'),
        ]
        cells = (step_cells(step.report) for step in self.steps)
        return facts("Trace", rows, folded("steps", STEP_COLUMNS, cells))

    @property
    def _images(self) -> int:
        return len(self.steps[0].prediction) if self.steps else 0
