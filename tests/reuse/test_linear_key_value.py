"""Keys and values that are forecast while they are stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, RandomPolicy, RefreshSchedule, SequentialPolicy
from tokenprune.errors import AttentionError
from tokenprune.ops.selection import Selection
from tokenprune.ops.static_memory import StaticBuffers
from tokenprune.reuse.key_value import BufferKey, FreshKeys, KeyValueBuffer, Span
from tokenprune.reuse.linear_key_value import LinearBuffer
from tokenprune.reuse.taylor import Taylor

IMAGES, HEADS, LENGTH, DIM = 2, 3, 6, 4
TIMES = (950.0, 900.0, 840.0, 760.0, 700.0, 610.0)
ALL = (0, LENGTH)


def draw(seed: int) -> Tensor:
    return torch.randn(IMAGES, HEADS, LENGTH, DIM, generator=torch.Generator().manual_seed(seed))


def line(time: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, L, D] that follow a line in time, each number its own."""
    passed = (1000 - time) / 500
    return draw(seed) + passed * draw(seed + 1), draw(seed + 2) + passed * draw(seed + 3)


def at(buffer: KeyValueBuffer, time: float) -> KeyValueBuffer:
    buffer.clock = torch.tensor(time)
    return buffer


def places(columns: list[int], span: Span = ALL) -> FreshKeys:
    return FreshKeys.of(Selection(torch.tensor([columns] * IMAGES), LENGTH), span, StaticBuffers())


def started() -> LinearBuffer:
    buffer = LinearBuffer()
    for time in TIMES[:3]:
        at(buffer, time).record(*line(time), ALL)
    return buffer


def test_lines_are_followed_exactly_whenever_each_row_was_computed() -> None:
    buffer = started()
    for step, columns in enumerate(([0, 3], [1, 3, 4], [0]), start=3):
        key, value = line(TIMES[step])
        made = at(buffer, TIMES[step]).update(places(columns), key[:, :, columns], value[:, :, columns])
        for whole, truth in zip(made, (key, value), strict=True):
            torch.testing.assert_close(whole, truth, atol=1e-4, rtol=1e-4)


def test_fresh_rows_are_returned_as_they_came() -> None:
    buffer = started()
    key, value = draw(50), draw(51)
    made_key, made_value = at(buffer, TIMES[3]).update(places([1, 4]), key[:, :, [1, 4]], value[:, :, [1, 4]])
    assert torch.equal(made_key[:, :, [1, 4]], key[:, :, [1, 4]])
    assert torch.equal(made_value[:, :, [1, 4]], value[:, :, [1, 4]])


@pytest.mark.parametrize("first", [0, 2], ids=["image-text", "text-image"])
def test_text_keys_have_no_part_in_the_forecasts(first: int) -> None:
    """They are computed at every step: joint sequences forecast their image tokens as sequences without text do."""
    joint, alone = LinearBuffer(), LinearBuffer()
    span, images = (first, 4), slice(first, first + 4)
    for time in TIMES[:4]:
        whole = [number + (time % 3) * draw(5) for number in line(time)]
        at(joint, time).record(*whole, span)
        at(alone, time).record(*(number[:, :, images] for number in whole), (0, 4))
    for step, chosen in enumerate(([0, 2], [1, 2]), start=4):
        given = [number.sqrt() for number in map(torch.abs, line(TIMES[step]))]
        columns = sorted({*range(LENGTH)} - {*range(first, first + 4)} | {first + token for token in chosen})
        fresh = [number[:, :, columns] for number in given]
        made = at(joint, TIMES[step]).update(places(columns, span), *fresh)
        own = FreshKeys.of(Selection(torch.tensor([chosen] * IMAGES), 4), (0, 4), StaticBuffers())
        expected = at(alone, TIMES[step]).update(own, *(number[:, :, images][:, :, chosen] for number in given))
        for mine, other, number in zip(made, expected, given, strict=True):
            assert torch.equal(mine[:, :, images], other)
            assert torch.equal(mine[:, :, columns], number[:, :, columns])
    assert alone.nbytes < joint.nbytes == alone.nbytes + 2 * IMAGES * HEADS * 2 * DIM * 4


def test_an_image_that_jumps_to_and_fro_comes_to_be_held() -> None:
    """A forecast that was of no use is damped away, image by image: the other goes on along its lines."""
    buffer, truth = LinearBuffer(), {time: line(time) for time in TIMES}
    for place, time in enumerate(TIMES):
        for number in truth[time]:
            number[0] = (-1.0) ** place * 5
    for time in TIMES[:5]:
        at(buffer, time).record(*truth[time], ALL)
    key, value = truth[TIMES[5]]
    made, _ = at(buffer, TIMES[5]).update(places([5]), key[:, :, [5]], value[:, :, [5]])
    assert torch.equal(made[0, :, :5], truth[TIMES[4]][0][0, :, :5])
    torch.testing.assert_close(made[1], key[1], atol=1e-4, rtol=1e-4)


def test_the_halves_of_guidance_share_their_damping() -> None:
    alone, shared = LinearBuffer(), LinearBuffer(halves=2)
    for buffer in (alone, shared):
        for time in TIMES[:4]:
            key, value = line(time)
            key[0] = (1000 - time) ** 0.5 * draw(9)[0]  # slows down
            at(buffer, time).record(key, value, ALL)
    fresh = [number[:, :, [2]] for number in line(TIMES[4])]
    first, second = (at(buffer, TIMES[4]).update(places([2]), *fresh)[0] for buffer in (alone, shared))
    assert not torch.equal(first, second)
    moved = [(made - line(TIMES[3])[0])[1, :, [0, 1, 3, 4, 5]].norm() for made in (first, second)]
    assert moved[0] > moved[1] > 0


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(AttentionError, match=r"expected values of the same shape .*Taylor\(keys=False\)"):
        at(LinearBuffer(), TIMES[0]).record(draw(0), draw(1)[..., :2], ALL)


def test_a_repeated_timestep_leaves_the_slopes() -> None:
    """Second-order samplers come back to a timestep."""
    buffer = started()
    at(buffer, TIMES[2]).record(*line(TIMES[2]), ALL)
    key, value = line(TIMES[3])
    made, _ = at(buffer, TIMES[3]).update(places([0]), key[:, :, [0]], value[:, :, [0]])
    torch.testing.assert_close(made, key, atol=1e-4, rtol=1e-4)


def test_a_line_is_followed_only_once_it_was_seen_to_go_on() -> None:
    """After two values there is a slope, after three it is known whether that was of any use."""
    buffer = LinearBuffer()
    for time in TIMES[:2]:
        at(buffer, time).record(*line(time), ALL)
    key, value = line(TIMES[2])
    made, _ = at(buffer, TIMES[2]).update(places([0]), key[:, :, [0]], value[:, :, [0]])
    assert torch.equal(made[:, :, 1:], line(TIMES[1])[0][:, :, 1:])


def test_a_new_generation_forgets_the_lines_and_keeps_the_memory() -> None:
    buffer = started()
    kept = buffer.key
    buffer.restart()
    at(buffer, TIMES[0]).record(*line(TIMES[0], seed=70), ALL)
    assert buffer.key is kept
    key, value = line(TIMES[1], seed=70)
    made, _ = at(buffer, TIMES[1]).update(places([2]), key[:, :, [2]], value[:, :, [2]])
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(made[:, :, rest], line(TIMES[0], seed=70)[0][:, :, rest])


def test_the_memory_is_that_of_two_pairs_and_some_numbers_for_each_row() -> None:
    buffer, plain = LinearBuffer(), KeyValueBuffer()
    at(buffer, TIMES[0]).record(*line(TIMES[0]), ALL)
    plain.record(*line(TIMES[0]), ALL)
    assert buffer.nbytes == 2 * plain.nbytes + (4 * IMAGES * LENGTH + 2 * 2 * IMAGES) * 4
    before = buffer.nbytes
    for time in TIMES[1:]:
        at(buffer, time).record(*line(time), ALL)
    assert buffer.nbytes == before


def test_the_report_tells_of_the_memory(model: nn.Module, make_steps: Callable[..., Any]) -> None:
    held = {}
    for keys in (False, True):
        with tokenprune.apply(model, RandomPolicy(0.5, 2), reuse=Taylor(1, keys=keys)) as handle:
            list(make_steps(model))
            held[keys] = handle.report().cache_bytes
            buffers = handle._masked.generation.branches.popitem()[1].buffers.values()
            assert all(type(buffer) is (LinearBuffer if keys else KeyValueBuffer) for buffer in buffers)
            extra = sum(buffer.nbytes for buffer in buffers)
    assert held[False] < held[True] < held[False] + extra


@pytest.mark.parametrize(("share", "forecast"), [(0, 0), (0.25, 1), (0.26, 2), (0.5, 2), (0.9, 4), (1.0, 4)])
def test_the_first_modules_forecast(
    share: float, forecast: int, sd3: nn.Module, make_steps: Callable[..., Any]
) -> None:
    """Of four; the others hold."""
    with tokenprune.apply(sd3, RandomPolicy(0.5, 2), reuse=Taylor(keys=share)) as handle:
        list(make_steps(sd3))
        buffers = handle._masked.generation.branches.popitem()[1].buffers
        kinds = [type(buffers[BufferKey(site.path)]) for site in handle._masked.map.attentions]
    assert kinds == [LinearBuffer] * forecast + [KeyValueBuffer] * (4 - forecast)


def test_a_share_of_one_is_all_and_of_none_none(sd3: nn.Module, make_steps: Callable[..., Any]) -> None:
    made = {}
    for keys in (False, 0.0, 0.5, 1.0, True):
        with tokenprune.apply(sd3, CATPolicy(0.3, 4), reuse=Taylor(keys=keys)):
            made[repr(keys)] = list(make_steps(sd3))
    for one, other in (("False", "0.0"), ("True", "1.0")):
        assert all(map(torch.equal, made[one], made[other]))
    for name in ("0.0", "1.0"):
        assert not any(map(torch.equal, made["0.5"][5:], made[name][5:]))


def test_full_steps_stay_the_plain_models(model: nn.Module, make_steps: Callable[..., Any]) -> None:
    steps = make_steps(model)
    plain = list(steps)
    with tokenprune.apply(model, CATPolicy(0.3), schedule=RefreshSchedule(2, 0.3), reuse=Taylor(1, keys=True)):
        pruned = list(steps)
    assert all(torch.equal(a, b) for a, b in zip(plain[::2], pruned[::2], strict=True))
    assert not torch.equal(plain[3], pruned[3])


def test_generations_do_not_depend_on_those_before(model: nn.Module, make_steps: Callable[..., Any]) -> None:
    policy, first, second = SequentialPolicy(0.3, 2), make_steps(model, seed=1), make_steps(model, seed=2)
    with tokenprune.apply(model, policy, reuse=Taylor(1, keys=True)):
        fresh = list(second)
    with tokenprune.apply(model, policy, reuse=Taylor(1, keys=True)):
        list(first)
        again = list(second)
    assert all(torch.equal(a, b) for a, b in zip(fresh, again, strict=True))


def test_forecast_keys_change_the_pruned_steps(model: nn.Module, make_steps: Callable[..., Any]) -> None:
    steps, made = make_steps(model), {}
    for keys in (False, True):
        with tokenprune.apply(model, SequentialPolicy(0.3, 2), reuse=Taylor(1, keys=keys)):
            made[keys] = list(steps)
    assert torch.equal(made[False][1], made[True][1])
    assert not torch.equal(made[False][4], made[True][4])


def test_update_before_record_is_refused() -> None:
    with pytest.raises(RuntimeError, match="starts with a full step"):
        at(LinearBuffer(), 1.0).update(places([0]), draw(0)[:, :, [0]], draw(1)[:, :, [0]])
