"""The training code: what it learns towards, and that a resumed run is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED
from tokenprune.embedded.training import flux, pixart, sd3, t5, text
from tokenprune.embedded.training.data import BACKGROUNDS, SceneDataset, batches
from tokenprune.embedded.training.loop import Settings, learning_rate, train

CPU = torch.device("cpu")
TINY = Settings(layers=1, heads=2, head_dim=8, steps=4, batch_size=2, warmup=1, checkpoint_every=2)


class Toy(nn.Module):
    """One block of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def toy_loss(forward: Callable[..., Any], batch: Any, step: int) -> Tensor:
    return (forward(batch["picture"]) - torch.randn(2, 4)).square().mean()


def toy_feed(stop: int = 4) -> Callable[[int], Iterator[Any]]:
    return lambda first: ({"picture": torch.full((2, 4), float(i + 1))} for i in range(first, stop))


def toy_run(out: Path, stop: int = 4) -> nn.Module:
    torch.manual_seed(1)
    model = Toy()
    return train("toy", out, TINY, model, model.blocks, toy_loss, toy_feed(stop), CPU, compile_model=False)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = toy_run(tmp_path / "whole")
    toy_run(tmp_path / "parts", stop=2)
    resumed = toy_run(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    rows = [json.loads(line) for line in (tmp_path / "parts" / "loss.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {0, 3}


def test_training_moves_every_weight(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = Toy().state_dict()
    after = toy_run(tmp_path).state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    settings = Settings(steps=100, warmup=10, cooldown=0.2)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == 0


class TestDiffusion:
    diffusion = pixart.Diffusion(CPU)

    def draw(self, seed: int) -> Tensor:
        return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))

    def test_noise_is_added_as_diffusers_does(self) -> None:
        scheduler = DDPMScheduler(
            beta_start=pixart.FIRST_BETA, beta_end=pixart.LAST_BETA, beta_schedule="linear", clip_sample=False
        )
        times, latents, noise = torch.tensor([0, 500, 999]), self.draw(0), self.draw(1)
        expected = scheduler.add_noise(latents, noise, times)
        torch.testing.assert_close(self.diffusion.noisy(latents, noise, times), expected)

    def test_nothing_is_lost_at_the_true_noise_and_the_posteriors_variance(self) -> None:
        """Both parts of the loss are 0 there: a variance output of -1 stands for the lower bound, the posterior's."""
        times, noise = torch.tensor([1, 400, 999]), self.draw(1)
        perfect = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
        assert self.diffusion.loss(perfect, noise, times) == pytest.approx(0, abs=1e-6)
        for worse in (perfect + 0.1, torch.cat([noise, torch.ones_like(noise)], dim=1)):
            assert self.diffusion.loss(worse, noise, times) > 1e-6

    def test_the_bound_is_the_divergence_of_the_two_gaussians(self) -> None:
        """At one timestep, against torch.distributions and the posterior's textbook mean."""
        t, latents, noise, predicted = 300, self.draw(2)[:1], self.draw(3)[:1], self.draw(4)[:1]
        betas = torch.linspace(pixart.FIRST_BETA, pixart.LAST_BETA, 1000, dtype=torch.float64)
        kept = torch.cumprod(1 - betas, 0)
        noisy = self.diffusion.noisy(latents, noise, torch.tensor([t])).double()

        def posterior_mean(of_noise: Tensor) -> Tensor:
            x = (noisy - (1 - kept[t]).sqrt() * of_noise) / kept[t].sqrt()
            ours = kept[t - 1].sqrt() * betas[t] / (1 - kept[t]) * x
            return ours + (1 - betas[t]).sqrt() * (1 - kept[t - 1]) / (1 - kept[t]) * noisy

        variance = betas[t] * (1 - kept[t - 1]) / (1 - kept[t])
        true = torch.distributions.Normal(posterior_mean(noise), variance.sqrt())
        made = torch.distributions.Normal(posterior_mean(predicted), betas[t].sqrt())
        expected = torch.distributions.kl_divergence(true, made).mean()
        output = torch.cat([predicted, torch.ones_like(predicted)], dim=1)
        weight = min(pixart.MOST_WEIGHT, float(1 / kept[t]))
        bound = self.diffusion.loss(output, noise, torch.tensor([t])) - weight * (predicted - noise).square().mean()
        assert float(bound) == pytest.approx(float(expected), rel=1e-3)

    def test_the_variance_learns_from_the_bound_alone(self) -> None:
        output = torch.cat([self.draw(5), self.draw(6)], dim=1).requires_grad_()
        self.diffusion.loss(output, output[:, :4].detach(), torch.tensor([5, 300, 900])).backward()
        assert output.grad is not None
        assert output.grad[:, :4].abs().max() == 0
        assert output.grad[:, 4:].abs().min() > 0


def test_every_word_of_the_captions_is_one_t5_token(tmp_path: Path) -> None:
    tokenizer = t5.build_tokenizer()
    captions = [caption.lower() for split in ("train", "held-out") for caption, _ in scenes.captions(split, 100)]
    for caption in captions:
        tokens = tokenizer(caption).input_ids
        words = caption.replace(",", " ,").split()
        assert len(tokens) == len(words) + 1 <= t5.MAX_TOKENS, caption
        assert tokenizer.unk_token_id not in tokens
        assert tokens[-1] == tokenizer.eos_token_id
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(captions).input_ids == tokenizer(captions).input_ids


def test_a_new_transformer_predicts_nothing() -> None:
    """Blocks start as the identity and the last projection as zero, whatever the input."""
    model = pixart.build_transformer(TINY, 4).eval()
    with torch.no_grad():
        output = model(
            torch.randn(1, 4, 32, 32),
            encoder_hidden_states=torch.randn(1, 5, t5.WIDTH),
            timestep=torch.tensor([10]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
    assert output.shape == (1, 8, 32, 32)
    assert output.abs().max() == 0


@pytest.mark.parametrize("name", ["sd3", "pixart", "flux"])
def test_each_transformer_trains_on_scenes(name: str, tmp_path: Path) -> None:
    """Two real steps with untrained text encoders; the loss is a number and the weights move."""
    vae = EMBEDDED["shapes-sd3"].load().vae
    torch.manual_seed(0)
    if name == "sd3":
        tokenizer: Any = text.build_tokenizer()
        model: Any = sd3.build_transformer(TINY, 4)
        encoders = [text.build_encoder(tokenizer) for _ in range(2)]
        loss: Any = sd3.SD3Loss(TINY, encoders, tokenizer, vae)
    elif name == "flux":
        tokenizer = t5.build_tokenizer()
        words = text.build_tokenizer()
        clip = flux.pooled_encoder(text.build_encoder(words))
        model = flux.build_transformer(TINY, 4)
        loss = flux.FluxLoss(TINY, clip, words, t5.build_encoder(tokenizer), tokenizer, vae)
    else:
        tokenizer = t5.build_tokenizer()
        model = pixart.build_transformer(TINY, 4)
        loss = pixart.PixArtLoss(TINY, t5.build_encoder(tokenizer), tokenizer, vae)
    data = SceneDataset(tokenizer, TINY.picture_size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    blocks = model.transformer_blocks
    trained = train(
        name, tmp_path, TINY, model, blocks, loss, lambda first: batches(data, 2, first, 2, 0), CPU, compile_model=False
    )
    moved = [key for key, value in trained.state_dict().items() if not torch.equal(value, before[key])]
    assert any("proj_out" in key for key in moved)
    row = json.loads((tmp_path / "loss.jsonl").read_text().splitlines()[0])
    assert 0 < row["loss"] < 100
    assert (tmp_path / "checkpoint.pt").exists()


def test_guidance_is_learnt_into_flux() -> None:
    """Late in a run, half of a batch learns the guided velocity of a teacher that answers captions with a constant."""
    vae, words, tokenizer = EMBEDDED["shapes-sd3"].load().vae, text.build_tokenizer(), t5.build_tokenizer()
    clip, encoder = flux.pooled_encoder(text.build_encoder(words)), t5.build_encoder(tokenizer)
    loss = flux.FluxLoss(Settings(steps=10, caption_dropout=0.0), clip, words, encoder, tokenizer, vae)
    scales: list[Tensor] = []

    def teacher(hidden_states: Tensor, guidance: Tensor, **rest: Any) -> tuple[Tensor]:
        scales.append(guidance)
        return (torch.zeros_like(hidden_states),)

    batch = next(batches(SceneDataset(tokenizer, 64), 4, 0, 1, 0))
    loss(teacher, batch, step=0)
    assert [scale.tolist() for scale in scales] == [[1.0] * 4]
    scales.clear()
    loss(teacher, batch, step=9)
    assert [len(scale) for scale in scales] == [2, 2, 4]
    assert [scale.tolist() for scale in scales[:2]] == [[1.0] * 2] * 2
    assert scales[2][:2].min() > 1
    assert scales[2].max() <= flux.MOST_GUIDANCE
    assert scales[2][2:].tolist() == [1.0] * 2


def test_a_flux_pipeline_draws() -> None:
    words, tokenizer = text.build_tokenizer(), t5.build_tokenizer()
    made = flux.assemble(
        TINY,
        flux.build_transformer(TINY, 4),
        flux.pooled_encoder(text.build_encoder(words)),
        words,
        t5.build_encoder(tokenizer),
        tokenizer,
        EMBEDDED["shapes-sd3"].load().vae,
    )
    made.set_progress_bar_config(disable=True)
    pictures = made("a red circle", height=64, width=64, num_inference_steps=2, max_sequence_length=48).images
    assert pictures[0].size == (64, 64)


def test_the_place_reader_reads_what_it_is_trained_on() -> None:
    torch.manual_seed(0)
    reader = t5.PlaceReader()
    features, mask = torch.randn(2, 6, t5.WIDTH), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    cells, background = reader(features, mask)
    assert cells.shape == (2, 9, sum(reader.sizes))
    assert background.shape == (2, len(BACKGROUNDS))
    changed = features.clone()
    changed[1, 4:] += 5
    again, _ = reader(changed, mask)
    torch.testing.assert_close(again, cells)
