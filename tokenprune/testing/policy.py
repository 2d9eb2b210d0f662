"""A check for selection policies, one's own ones above all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.policies.base import SelectionPolicy
from tokenprune.reports.checks import CheckResult, Finding
from tokenprune.reports.remaining import Remaining
from tokenprune.testing.player import NOISES, Case, Player, PolicyCheckError, Property, error_of

GRIDS: tuple[TokenGrid, ...] = ((1, 7), (3, 5), (4, 4, 4))
MEANINGS: dict[Property, str] = {
    "selects": "selections made",
    "selection": "selections of just the wanted count, sorted, unique, in range",
    "memory": "entries with a row for each image",
    "inputs": "selections that left what they were shown",
    "random state": "selections that left torch's generator",
    "determinism": "selections the same with a new policy",
    "isolation": "selections the same in generations that take turns",
    "batch": "selections the same for an image alone or elsewhere in the batch",
    "attention": "times float32 weights, one for each token",
    "synchronisation": "selections without waiting for the device (as far as the CPU tells)",
}
"""What is counted of each property."""


UNSEEN = (
    "whether its choices make good pictures: see tokenprune bench and tokenprune figures --policy",
    "what a selection costs in time and memory",
    "other settings, and grids of other sizes, than those it was made and called with",
)
"""What the kit cannot tell of a policy."""


def check_policy(
    policy_factory: Callable[[], SelectionPolicy],
    *,
    grids: Sequence[TokenGrid] = GRIDS,
    images: int = 2,
    channels: int = 8,
    steps: int = 7,
    seed: int = 0,
    device: torch.device | str = "cpu",
    tell: Callable[[str], None] | None = None,
) -> CheckResult:
    """Play generations with a policy and raise unless it has every property that the engine relies on.

    The properties, by their names in the error: "selects" (it returns), "selection" (exactly `count` tokens of every
    image, sorted, unique and in range), "memory" (tensors with a row for each image), "inputs" (nothing it was given
    is changed), "random state" (torch's is left alone), "determinism" (a second policy does the same), "isolation"
    (so does the same policy in another generation, also while the first is under way), "batch" (an image alone, and
    in another place of the batch, gets the same tokens), "attention" (where the policy needs it, `weigh_attention`
    gives float32 numbers [B, N]) and "synchronisation" (the host never waits for the device, to read from it or to
    copy to it). The noise is normal, full of ties, constant, zero or partly NaN.

    Args:
        policy_factory: makes the policy anew, with the same settings each time.
        grids: token grids to play on.
        images: images in a batch, at least 2.
        channels: channels of a prediction.
        steps: steps of a generation; the first two and the fifth are full ones.
        seed: seed of the noise.
        device: where the predictions lie.
        tell: given a line for each grid, noise and count that was played, with how long the rest may take; `print`,
            for example.

    Returns:
        How often each property was seen to hold, and what no such check can tell; printed, a table.

    Raises:
        PolicyCheckError: a property does not hold; it has the `result` so far.
    """
    held: Counter[Property] = Counter()
    given = grids, images, channels, steps, seed, torch.device(device)
    remaining = Remaining(sum(1 for _ in _cases(*given)))
    try:
        for case in _cases(*given):
            _check_case(policy_factory, case, held)
            remaining.finish_one()
            if tell is not None:
                grid = " x ".join(map(str, case.grid))
                tell(f"grid {grid}, {case.noise} noise, {case.count} tokens: passed ({remaining})")
    except PolicyCheckError as error:
        error.result = _result(str(error).partition(" breaks")[0], held, error)
        raise
    return _result(type(policy_factory()).__name__, held)


def _result(name: str, held: Counter[Property], error: PolicyCheckError | None = None) -> CheckResult:
    findings = []
    for broken, meaning in MEANINGS.items():
        if error is not None and error.broken == broken:
            findings.append(Finding(broken, "failed", str(error)))
        elif held[broken]:
            findings.append(Finding(broken, "passed", f"{held[broken]} {meaning}{', until then' if error else ''}"))
        else:
            unmet = (
                "not reached" if error else "the policy asks for none" if broken == "attention" else "none were made"
            )
            findings.append(Finding(broken, "not checked", unmet))
    return CheckResult(f"policy {name}", tuple(findings), UNSEEN)


def _cases(
    grids: Sequence[TokenGrid], images: int, channels: int, steps: int, seed: int, device: torch.device
) -> Iterator[Case]:
    for grid in grids:
        tokens = num_tokens(grid)
        some = max(1, tokens // 3)
        for noise in NOISES:
            for count in sorted({1, some, max(1, tokens - 1)}) if noise == "normal" else [some]:
                yield Case(tuple(grid), noise, count, images, channels, steps, seed, device)


def _check_case(policy_factory: Callable[[], SelectionPolicy], case: Case, held: Counter[Property]) -> None:
    policy, everyone = policy_factory(), range(case.images)
    made = Player(policy, case, everyone, held).play()

    def same(broken: Property, again: list[Tensor], expected: list[Tensor], meaning: str) -> None:
        for step, (one, other) in enumerate(zip(again, expected, strict=True)):
            if not torch.equal(one, other):
                detail = f"selection {step}: {meaning}, {other.tolist()} became {one.tolist()}"
                raise error_of(policy, case, broken, detail)
            held[broken] += 1

    same("determinism", Player(policy_factory(), case, everyone, held).play(), made, "the same again with a new policy")
    for again in _taking_turns(policy, case, held):
        same("isolation", again, made, "two more generations that take turns, each with its own memory")
    backwards = [index.flip(0) for index in made]
    same("batch", Player(policy, case, everyone[::-1], held).play(), backwards, "the images in reverse order")
    for image in everyone:
        alone = [index[image : image + 1] for index in made]
        same("batch", Player(policy, case, [image], held).play(), alone, f"image {image} alone")
    Player(policy, case, everyone, held, watched=True).play()


def _taking_turns(policy: SelectionPolicy, case: Case, held: Counter[Property]) -> tuple[list[Tensor], list[Tensor]]:
    players = tuple(Player(policy, case, range(case.images), held) for _ in range(2))
    for step in range(case.steps):
        for player in players:
            player.step(step)
    return players[0].made, players[1].made
