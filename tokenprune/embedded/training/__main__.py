"""`python -m tokenprune.embedded.training sd3 --out runs/sd3` (or `pixart`): train and assemble a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from transformers import PreTrainedTokenizerBase

from tokenprune.embedded.load import load_shapes_pixart, load_shapes_sd3
from tokenprune.embedded.training import flux, pixart, sd3, t5, text, vae
from tokenprune.embedded.training.data import Batch, SceneDataset, batches
from tokenprune.embedded.training.loop import Loss, Settings, train

app = typer.Typer(help=__doc__, no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder for checkpoints and the finished pipeline.")]
PictureSize = Annotated[int, typer.Option(help="Side of the pictures in pixels; tokens = (side / 4)^2.")]
TextSteps = Annotated[int, typer.Option(help="Steps for each text encoder (batch 128).")]
VaeSteps = Annotated[int, typer.Option(help="Steps for the autoencoder (batch 16, crops).")]
Steps = Annotated[int, typer.Option(help="Steps for the transformer.")]
BatchSize = Annotated[int, typer.Option(help="Pictures per transformer step.")]
Grow = Annotated[bool, typer.Option(help="Begin with the shipped model of 64 x 64 pixels in place of random weights.")]
LearningRate = Annotated[float, typer.Option(help="Factor on all learning rates.")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="Use torch.compile.")]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _settings(picture_size: int, steps: int, batch_size: int, learning_rate: float) -> Settings:
    return Settings(
        picture_size=picture_size,
        steps=steps,
        batch_size=batch_size,
        muon_lr=Settings.muon_lr * learning_rate,
        adam_lr=Settings.adam_lr * learning_rate,
    )


def _train(
    name: str,
    out: Path,
    settings: Settings,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    loss: Loss,
    device: torch.device,
    compile_model: bool,
) -> Any:
    """The transformer, trained on scenes under OUT/transformer."""
    data = SceneDataset(tokenizer, settings.picture_size)

    def feed(first: int) -> Iterator[Batch]:
        return batches(data, settings.batch_size, first, settings.steps, workers=1)

    blocks = nn.ModuleList([*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())])
    return train(name, out / "transformer", settings, model, blocks, loss, feed, device, compile_model)


def _save(pipeline: Any, folder: Path) -> None:
    pipeline.to("cpu", torch.float16).save_pretrained(folder)


@app.command("sd3")
def train_sd3(
    out: Out = Path("runs/sd3"),
    picture_size: PictureSize = Settings.picture_size,
    text_steps: TextSteps = 1800,
    vae_steps: VaeSteps = 2000,
    steps: Steps = Settings.steps,
    batch_size: BatchSize = Settings.batch_size,
    learning_rate: LearningRate = 1.0,
    grow: Grow = False,
    compile_model: Compile = True,
) -> None:
    """Train every stage of shapes-sd3 that has no result under OUT yet, then save the pipeline to OUT/pipeline."""
    device = _device()
    settings = _settings(picture_size, steps, batch_size, learning_rate)
    shipped = load_shapes_sd3().to(device) if grow else None
    if shipped is not None:
        encoders, tokenizer, autoencoder = (
            [shipped.text_encoder, shipped.text_encoder_2],
            shipped.tokenizer,
            shipped.vae,
        )
    else:
        encoders = [text.train(out / f"text_{seed}", text_steps, 128, seed, device) for seed in (1, 2)]
        tokenizer = text.build_tokenizer()
        autoencoder = vae.train(out / "vae", tokenizer, picture_size, vae_steps, 16, device)
    torch.manual_seed(settings.seed)
    model = sd3.build_transformer(settings, autoencoder.config.latent_channels).to(device)
    if shipped is not None:
        sd3.grow(model, shipped.transformer)
    loss = sd3.SD3Loss(settings, encoders, tokenizer, autoencoder)
    trained = _train("sd3", out, settings, model, tokenizer, loss, device, compile_model)
    _save(sd3.assemble(settings, trained, encoders, tokenizer, autoencoder), out / "pipeline")


@app.command("pixart")
def train_pixart(
    out: Out = Path("runs/pixart"),
    picture_size: PictureSize = Settings.picture_size,
    text_steps: TextSteps = 1800,
    steps: Steps = Settings.steps,
    batch_size: BatchSize = Settings.batch_size,
    learning_rate: LearningRate = 1.0,
    grow: Grow = False,
    compile_model: Compile = True,
) -> None:
    """The same for shapes-pixart; its autoencoder is that of shapes-sd3, as it ships."""
    device = _device()
    settings = _settings(picture_size, steps, batch_size, learning_rate)
    shipped = load_shapes_pixart().to(device) if grow else None
    encoder = t5.train(out / "text", text_steps, 128, device) if shipped is None else shipped.text_encoder
    tokenizer = t5.build_tokenizer()
    autoencoder = load_shapes_sd3().vae.to(device)
    torch.manual_seed(settings.seed)
    model = pixart.build_transformer(settings, autoencoder.config.latent_channels).to(device)
    if shipped is not None:
        pixart.grow(model, shipped.transformer)
    loss = pixart.PixArtLoss(settings, encoder, tokenizer, autoencoder)
    trained = _train("pixart", out, settings, model, tokenizer, loss, device, compile_model)
    _save(pixart.assemble(trained, encoder, tokenizer, autoencoder), out / "pipeline")


@app.command("flux")
def train_flux(
    out: Out = Path("runs/flux"),
    picture_size: PictureSize = Settings.picture_size,
    steps: Steps = Settings.steps,
    batch_size: BatchSize = Settings.batch_size,
    learning_rate: LearningRate = 1.0,
    compile_model: Compile = True,
) -> None:
    """The same for shapes-flux; its text encoders and autoencoder are those of the two others, as they ship."""
    device = _device()
    settings = _settings(picture_size, steps, batch_size, learning_rate)
    first, second = load_shapes_sd3().to(device), load_shapes_pixart().to(device)
    encoders = {
        "clip": flux.pooled_encoder(first.text_encoder).to(device),
        "clip_tokenizer": first.tokenizer,
        "encoder": second.text_encoder,
        "tokenizer": t5.build_tokenizer(),
        "vae": first.vae,
    }
    torch.manual_seed(settings.seed)
    model = flux.build_transformer(settings, first.vae.config.latent_channels).to(device)
    loss = flux.FluxLoss(settings, **encoders)
    trained = _train("flux", out, settings, model, encoders["tokenizer"], loss, device, compile_model)
    _save(flux.assemble(settings, trained, **encoders), out / "pipeline")


app()
