"""What a policy is shown of the attention: the conditional half's, at the last full step before a pruned one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from tiny import ALL
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    BudgetSchedule,
    LevelSchedule,
    ListSchedule,
    Memory,
    Observation,
    RefreshSchedule,
    Schedule,
    ScorePolicy,
    Step,
    WarmupSchedule,
)
from tokenprune.ops.attention_map import column_means

STEPS, TOKENS, SITES = 8, 24, 4  # three joint attentions, and a second one in the first block


@dataclass(frozen=True)
class Attentive(ScorePolicy):
    """Keeps what it is shown."""

    needs: ClassVar[frozenset[Any]] = frozenset({"attention"})

    shown: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        self.shown.append((len(self.calls) - 1, query.clone(), key.clone()))
        return column_means(query, key, scale, 100)

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        self.seen.append(seen)
        return seen.prediction.norm(dim=-1)

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Number the model's calls."""
        hook = model.register_forward_pre_hook(lambda *_: self.calls.append(0), prepend=True)
        try:
            yield
        finally:
            hook.remove()


class Own(Schedule):
    """Says nothing of the next step."""

    def fraction(self, step: Step) -> float:
        return 0.3 if step.index in (3, 6) else 1.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (WarmupSchedule(0.3, 3), [2]),
        (WarmupSchedule(0.3, 3, last_full=2), [2]),
        (WarmupSchedule(1.0, 3), []),
        (RefreshSchedule(3, 0.3, 2), [1, 4]),
        (RefreshSchedule(2, 0.3, 1), [0, 2, 4, 6]),
        (ListSchedule((1, 1, 0, 0.3, 1, 1, 0.3, 1)), [1, 5]),
        (ListSchedule((1, 1, 0.3, 1)), [1]),
        (BudgetSchedule(0.75, least_warmup=3, every=None), [2]),
        (LevelSchedule(((1.0, 1.0), (0.4, 1.0), (0.3, 0.3), (0.0, 0.3)), warmup_steps=3), [2, 3, 4]),
        (Own(), [0, 1, 2, 4, 5]),
    ],
    ids=lambda value: "own" if isinstance(value, Own) else repr(value),
)
def test_the_last_full_step_before_a_pruned_one(
    sd3: nn.Module, generate: Callable[..., Tensor], schedule: Schedule, expected: list[int]
) -> None:
    """Where it cannot be told, every full step but the last of all."""
    policy = Attentive()
    with tokenprune.apply(sd3, policy, schedule=schedule), policy.counting(sd3):
        generate(sd3, seeds=(0, 1), steps=STEPS)
    assert [call for call, *_ in policy.shown] == [step for step in expected for _ in range(SITES)]
    assert all(seen.attention is not None for seen in policy.seen)


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
def test_the_conditional_half_alone(sd3: nn.Module, generate: Callable[..., Tensor], guidance: str) -> None:
    """Two images; with calls of their own, guidance's branches are shown where the conditional one is called."""
    policy = Attentive(0.3, 3)
    with tokenprune.apply(sd3, policy), policy.counting(sd3):
        generate(sd3, seeds=(0, 1), steps=STEPS, guidance=guidance)
    assert {call for call, *_ in policy.shown} == {4 if guidance == "sequential" else 2}
    assert {tuple(tensor.shape) for _, *both in policy.shown for tensor in both} == {(2, 4, TOKENS, 8)}
    scale = 8**-0.5
    means = [column_means(query, key, scale, TOKENS) for _, query, key in policy.shown]
    torch.testing.assert_close(policy.seen[0].attention, torch.stack(means).mean(0))


def test_the_half_is_the_conditional_one(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    found = {}
    for guidance in ("batched", "sequential"):
        policy = Attentive(0.3, 3)
        with tokenprune.apply(sd3, policy):
            generate(sd3, seeds=(0, 1), steps=STEPS, guidance=guidance)
        found[guidance] = policy.seen[0].attention
    torch.testing.assert_close(found["batched"], found["sequential"])


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("guidance", ["uncond-first", "cond-first", "none"])
def test_images_that_are_attended_to_one_by_one(guidance: str) -> None:
    """Mochi's: of four in a batch, those of the conditional half."""
    tiny = next(tiny for tiny in ALL if tiny.name == "mochi")
    shown = {}
    for halves in (guidance, "none"):
        policy, model = Attentive(0.3, 1), tiny.make()
        with tokenprune.apply(model, policy, guidance=halves), torch.no_grad():
            model(**{name: torch.cat([value, value + 0.1]) for name, value in tiny.inputs().items()})
        shown[halves] = [query for _, query, _ in policy.shown]
    images, sites = 4, len(shown["none"]) // 4
    wanted = {"uncond-first": [2, 3], "cond-first": [0, 1], "none": [0, 1, 2, 3]}[guidance]
    everything = [shown["none"][site * images + image] for site in range(sites) for image in wanted]
    assert all(torch.equal(one, other) for one, other in zip(shown[guidance], everything, strict=True))


class Wrong(WarmupSchedule):
    """Prunes after three full steps, and denies it."""

    def may_prune_after(self, step: Step) -> bool:
        return step.index >= self.warmup_steps


def test_a_schedule_that_was_wrong_gets_one_more_full_step(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    policy = Attentive()
    with tokenprune.apply(sd3, policy, schedule=Wrong(0.3, 3)) as handle:
        generate(sd3, steps=STEPS)
        tokens = [step.tokens for step in handle.report().steps]
    assert tokens == [TOKENS] * 4 + [7] * 4
    assert all(seen.attention is not None for seen in policy.seen)
