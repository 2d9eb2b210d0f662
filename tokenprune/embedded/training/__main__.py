"""`python -m tokenprune.embedded.training --out runs/shapes-sd3`: train and assemble shapes-sd3."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from tokenprune.embedded.training import sd3, text, vae


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished pipeline.")] = Path("runs/sd3"),
    picture_size: Annotated[int, typer.Option(help="Side of the pictures in pixels; tokens = (side / 4)^2.")] = 64,
    text_steps: Annotated[int, typer.Option(help="Steps for each text encoder (batch 128).")] = 1800,
    vae_steps: Annotated[int, typer.Option(help="Steps for the autoencoder (batch 16, crops).")] = 2000,
    steps: Annotated[int, typer.Option(help="Steps for the transformer.")] = sd3.Settings.steps,
    batch_size: Annotated[int, typer.Option(help="Pictures per transformer step.")] = sd3.Settings.batch_size,
    compile_model: Annotated[bool, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = True,
) -> None:
    """Train every stage that has no result under OUT yet, then save the pipeline to OUT/pipeline."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoders = [text.train(out / f"text_{seed}", text_steps, 128, seed, device) for seed in (1, 2)]
    tokenizer = text.build_tokenizer()
    autoencoder = vae.train(out / "vae", tokenizer, picture_size, vae_steps, 16, device)
    settings = sd3.Settings(picture_size=picture_size, steps=steps, batch_size=batch_size)
    transformer = sd3.train(out / "transformer", settings, encoders, tokenizer, autoencoder, device, compile_model)
    pipeline = sd3.assemble(transformer, encoders, tokenizer, autoencoder)
    pipeline.to("cpu", torch.float16).save_pretrained(out / "pipeline")


typer.run(main)
