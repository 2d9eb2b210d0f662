"""Saving, copying and pickling a pruned model: what comes out is the plain model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ListSchedule, Taylor, UnsupportedCallError


def through_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_torch}


@pytest.fixture(params=COPIES.values(), ids=COPIES.keys())
def make_copy(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return request.param


def test_saved_while_applied(
    pipe: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy, tmp_path: Path
) -> None:
    model = pipe.transformer
    plain = draw(pipe)
    model.save_pretrained(tmp_path / "plain")
    with tokenprune.apply(pipe, guest_policy):
        draw(pipe)
        model.save_pretrained(tmp_path / "pruned")
        state, config = list(model.state_dict()), dict(model.config)
    assert (state, config) == (list(model.state_dict()), dict(model.config))
    files = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("plain", "pruned")]
    assert files[0] == files[1]
    for file in files[0]:
        one, other = (tmp_path / name / file for name in ("plain", "pruned"))
        assert one.read_bytes() == other.read_bytes()
    weights = load_file(tmp_path / "pruned" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    pipe.register_modules(transformer=type(model).from_pretrained(tmp_path / "pruned"))
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("when", ["before the first call", "in mid-generation", "after a generation"])
def test_a_copy_is_a_plain_model_of_its_own(
    pipe: DiffusionPipeline,
    when: str,
    draw: Callable[..., Tensor],
    guest_policy: CATPolicy,
    marks: Callable[[nn.Module], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sample = pipe.transformer, pipe.scheduler.step
    plain, bare, copies, sampled = draw(pipe), marks(copy.deepcopy(model)), [], []

    def copy_if(now: str) -> None:
        if now == when:
            copies.extend(make_copy(model) for make_copy in COPIES.values())

    def step(*args: Any, **kwargs: Any) -> Any:
        sampled.append(None)
        if len(sampled) == 5:
            copy_if("in mid-generation")
        return sample(*args, **kwargs)

    with tokenprune.apply(pipe, guest_policy):
        pruned = draw(pipe)
    monkeypatch.setattr(pipe.scheduler, "step", step)
    handle = tokenprune.apply(pipe, guest_policy)
    on_model = marks(model)
    copy_if("before the first call")
    assert torch.equal(draw(pipe), pruned)
    copy_if("after a generation")
    assert marks(model) == on_model
    for copied in copies:
        pipe.register_modules(transformer=copied)
        assert {id(tensor) for tensor in copied.parameters()}.isdisjoint(map(id, model.parameters()))
        assert marks(copied) == bare
        assert torch.equal(draw(pipe), plain)
    assert len(copies) == len(COPIES)
    with tokenprune.apply(pipe, guest_policy):
        assert torch.equal(draw(pipe), pruned)
    pipe.register_modules(transformer=model)
    assert torch.equal(draw(pipe), pruned)
    handle.remove()


def test_what_stands_in_for_methods_is_not_copied(
    pipe: DiffusionPipeline,
    make_copy: Callable[[Any], Any],
    draw: Callable[..., Tensor],
    marks: Callable[[nn.Module], dict[str, Any]],
) -> None:
    """A schedule that skips steps puts a `forward` of its own on the model."""
    plain, bare = draw(pipe), marks(make_copy(pipe.transformer))
    with tokenprune.apply(pipe, CATPolicy(), schedule=ListSchedule((1, 1, 0)), reuse=Taylor()):
        assert "forward" in pipe.transformer.__dict__
        draw(pipe)
        copied = make_copy(pipe.transformer)
        assert marks(copied) == bare
        original = pipe.transformer
        pipe.register_modules(transformer=copied)
        assert torch.equal(draw(pipe), plain)
        pipe.register_modules(transformer=original)


def test_a_copied_pipeline(pipe: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy) -> None:
    plain = draw(pipe)
    with tokenprune.apply(pipe, guest_policy):
        copied = copy.deepcopy(pipe)
        assert torch.equal(draw(copied), plain)
        assert not torch.equal(draw(pipe), plain)


def test_a_model_without_adapter_before_its_first_call(make_copy: Callable[[Any], Any]) -> None:
    from models import DiT

    model = DiT()
    before = len(model._forward_pre_hooks)
    with tokenprune.apply(model, CATPolicy()):
        copied = make_copy(model)
        assert len(model._forward_pre_hooks) == before + 1
    assert type(copied) is DiT
    assert not copied._forward_pre_hooks
    assert sorted(copied.__dict__) == sorted(DiT().__dict__)
    assert sorted(model.__dict__) == sorted(DiT().__dict__)


def test_a_shallow_copy_says_so(pipe: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy) -> None:
    model = pipe.transformer
    with tokenprune.apply(pipe, guest_policy):
        pruned = draw(pipe)
        pipe.register_modules(transformer=model._replicate_for_data_parallel())
        with pytest.raises(
            UnsupportedCallError, match=r"a shallow copy or a replica of a pruned model.* remove\(\) the"
        ):
            draw(pipe)
        pipe.register_modules(transformer=model)
        assert torch.equal(draw(pipe), pruned)
