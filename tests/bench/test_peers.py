"""Methods of other packages, put on the embedded pipelines and taken off again."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.peers.pipeline import current_timestep
from tokenprune.bench.configurations.peers.table import PEERS, configurations
from tokenprune.bench.configurations.suites import make
from tokenprune.bench.measuring.fidelity import psnr
from tokenprune.bench.measuring.measure import Task, count, draw_all
from tokenprune.embedded.load import EMBEDDED

STEPS = 10
CONFIGURATIONS = {configuration.name: configuration for configuration in configurations(STEPS)}

ERRORS: dict[str, dict[str, tuple[type[Exception], str]]] = {
    "shapes-sd3": {
        "diffusers FirstBlockCache, threshold 0.05": (TypeError, "NoneType"),
        "diffusers FirstBlockCache, threshold 0.1": (TypeError, "NoneType"),
        "diffusers TaylorSeer, lite, 8 then every 3rd": (AttributeError, "'NoneType' object has no attribute 'dtype'"),
    },
    "shapes-pixart": {
        "diffusers TaylorSeer, defaults": (RuntimeError, "put no hook on PixArtTransformer2DModel"),
    },
    "shapes-flux": {},
}
"""What does not run, and its own error."""

IDLE = {
    "shapes-sd3": {"cache-dit DBCache, F1", "cache-dit DBCache, F1, TaylorSeer"},
    "shapes-pixart": {
        "diffusers FirstBlockCache, threshold 0.05",
        "cache-dit DBCache, F1",
        "cache-dit DBCache, F1, TaylorSeer",
    },
    "shapes-flux": {
        "diffusers FirstBlockCache, threshold 0.05",
        "cache-dit DBCache, F1",
        "cache-dit DBCache, F1, TaylorSeer",
    },
}
"""What computes everything at so few steps: eight of them are warm-up, and the others too far apart."""

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in FasterCache


@pytest.fixture(scope="module", params=sorted(ERRORS))
def drawn(request: pytest.FixtureRequest) -> Any:
    """A pipeline, its task, its plain picture and its name."""
    embedded = EMBEDDED[request.param]
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    task = Task(["a red circle on a green background"], STEPS, embedded.guidance_scale, 1, embedded.arguments)
    return pipe, task, draw_all(pipe, STEPS, task), request.param


def state(pipe: Any) -> list[Any]:
    """Whatever a method may leave on a pipeline."""
    modules = list(pipe.transformer.modules())
    return [
        [(type(module), sorted(vars(module))) for module in modules],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules],
        [sorted(vars(owner)) for owner in (pipe, type(pipe), pipe.scheduler)],
        type(pipe).__call__,
    ]


def skip_without_package(name: str) -> None:
    if name.startswith("cache-dit") and importlib.util.find_spec("cache_dit") is None:
        pytest.skip("cache-dit is not installed (extra 'peers')")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_peer_draws_near_the_plain_picture_and_comes_off_again(drawn: Any, name: str) -> None:
    skip_without_package(name)
    pipe, task, dense, model = drawn
    before, error = state(pipe), ERRORS[model].get(name)
    if error is not None:
        with pytest.raises(error[0], match=error[1]), CONFIGURATIONS[name].on(pipe):
            draw_all(pipe, STEPS, task)
    else:
        with CONFIGURATIONS[name].on(pipe):
            pictures, again = draw_all(pipe, STEPS, task), draw_all(pipe, STEPS, task)
        assert np.array_equal(again, pictures), "a generation depends on the one before"
        found = psnr(pictures[0], dense[0])
        assert (found is None) == (name in IDLE[model])
        assert found is None or found > 20
    assert state(pipe) == before
    assert np.array_equal(draw_all(pipe, STEPS, task), dense)


def test_an_interrupted_generation_leaves_nothing_to_the_next(drawn: Any) -> None:
    pipe, task, dense, _ = drawn
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == STEPS - 1:
            raise KeyboardInterrupt

    with CONFIGURATIONS["diffusers TaylorSeer, output, 3 then every 2nd"].on(pipe):
        whole = draw_all(pipe, STEPS, task)
        stopping = pipe.transformer.norm_out.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            draw_all(pipe, STEPS, task)
        stopping.remove()
        assert np.array_equal(draw_all(pipe, STEPS, task), whole)
    assert np.array_equal(draw_all(pipe, STEPS, task), dense)


def test_the_timestep_is_the_one_that_the_model_gets(drawn: Any) -> None:
    pipe, task, _, model = drawn
    scale = 1000 if model == "shapes-flux" else 1  # its pipeline gives the model a thousandth
    pairs: list[tuple[float, float]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        pairs.append((current_timestep(pipe), float(kwargs["timestep"].flatten()[0])))

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    for _ in range(2):
        draw_all(pipe, STEPS, task)
    handle.remove()
    assert len(pairs) == 2 * STEPS
    assert all(ours == pytest.approx(scale * models) for ours, models in pairs)


@pytest.mark.parametrize(
    "name", ["diffusers TaylorSeer, output, 3 then every 2nd", "cache-dit DBCache, F1 W4 R0.24 MC2"]
)
def test_what_a_peer_saves_is_counted(drawn: Any, name: str) -> None:
    skip_without_package(name)
    pipe, task, _, _ = drawn
    dense = count(pipe, STEPS, task).total
    with CONFIGURATIONS[name].on(pipe):
        assert 0.4 < count(pipe, STEPS, task).total / dense < 0.95


def test_a_missing_package_says_what_to_install(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.bench.configurations.peers.dual_block_cache.find_spec", lambda _: None)
    configuration = CONFIGURATIONS["cache-dit DBCache, F1"]
    with pytest.raises(ImportError, match=r"^cache-dit is not installed: pip install 'tokenprune-dit\[peers\]'$"):
        configuration.on(drawn[0]).__enter__()


def test_the_suite_has_peers_and_what_they_are_measured_against() -> None:
    found = {configuration.name: configuration for configuration in make("peers", 0.5, 28)}
    assert {peer.name for peer in PEERS} <= found.keys()
    assert {"plain, 28 steps", "plain, 14 steps", "CAT, 8 full steps", "CAT, published constants, 4 full steps"} <= set(
        found
    )
    assert {"tokenprune.plan, 0.5", "tokenprune.plan, 0.35", "full steps after 8, linear"} <= found.keys()
    assert sum(configuration.source.startswith("re-implementation") for configuration in found.values()) >= 4
    for peer in PEERS:
        assert all(f"{name}={value!r}" in found[peer.name].source for name, value in peer.settings.items())
        assert isinstance(found[peer.name], Configuration)
        assert found[peer.name].plan is None
