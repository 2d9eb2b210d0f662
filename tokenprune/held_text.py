"""A schedule whose pruned steps leave out text tokens, too."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.schedule import Schedule, Step


@dataclass(frozen=True)
class HeldText(Schedule):
    """Another schedule, whose pruned steps compute the text tokens only now and then.

    In models with joint attention (SD3, FLUX), text tokens run through the blocks beside the image tokens, and a pruned
    step computes all of them. With this schedule, some pruned steps give the model the first text token alone (the code
    of some models cannot do without any); image tokens then attend to the text's keys and values of the last step that
    computed them. Full steps always compute them. In models where image tokens see the text by cross-attention
    (PixArt, Wan) there are none to leave out, and `apply` refuses the schedule.

        tokenprune.apply(pipe, policy, schedule=HeldText(policy.schedule(), every=2))

    Args:
        schedule: says how many image tokens each step computes.
        every: text tokens are computed again once they are so many steps old, at least 1 (1: at every step); None is
            at full steps only.

    Raises:
        ValueError: `every` is below 1.
    """

    schedule: Schedule
    every: int | None = 2

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every: expected a whole number of at least 1, or None, got {self.every!r}")

    def computes_text(self, step: Step, age: int) -> bool:
        """Whether they are old enough."""
        return self.every is not None and age >= self.every

    @property
    def holds_text(self) -> bool:
        """Whether any pruned step leaves the text out."""
        return self.every != 1

    def fraction(self, step: Step) -> float:
        """That of the other schedule, as is all that follows."""
        return self.schedule.fraction(step)

    def count(self, step: Step, num_tokens: int) -> int:
        """How many image tokens are computed."""
        return self.schedule.count(step, num_tokens)

    @property
    def skips(self) -> bool:
        """Whether any fraction can be 0."""
        return self.schedule.skips

    @property
    def computes_parts(self) -> bool:
        """Whether any step may compute some image tokens, but not all."""
        return self.schedule.computes_parts

    @property
    def keeps_keys(self) -> bool:
        """Whether full steps keep keys and values."""
        return self.schedule.keeps_keys

    @property
    def asks_errors(self) -> bool:
        """Whether it goes by `Step.errors`."""
        return self.schedule.asks_errors

    def may_prune_after(self, step: Step) -> bool:
        """Whether the step after this one may compute fewer image tokens than all."""
        return self.schedule.may_prune_after(step)

    def prunes(self, steps: int) -> bool | None:
        """Whether a generation of so many steps computes fewer image tokens than all at one."""
        return self.schedule.prunes(steps)
