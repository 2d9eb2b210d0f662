"""Small real diffusers pipelines with random weights, made anew at each call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from tokenprune.embedded.load import EMBEDDED
from tokenprune.embedded.training.text import WIDTH, build_encoder

TOKENIZER = EMBEDDED["shapes-sd3"].folder / "tokenizer"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "StableDiffusion3": {"max_sequence_length": 1},
    "PixArtSigma": {"max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False},
}


def make_autoencoder(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=0.0,
    )


def make_sd3(channels: int = 4) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
        vae=make_autoencoder(channels),
        text_encoder=build_encoder(tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=build_encoder(tokenizer).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_pixart() -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(f"▁{word}", -3.0) for word in ("a", "red", "circle", "on", "green", "background", "blue", "star")]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    )
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        caption_channels=32,
        cross_attention_dim=32,
        use_additional_conditions=False,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    pipe = PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=make_autoencoder(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DiffusionPipeline, seed: int = 0, **arguments: Any) -> Tensor:
    """Latents [B, 4, 16, 16] that a pipeline draws from a seed, in six steps unless told otherwise."""
    given = next(given for name, given in ARGUMENTS.items() if type(pipe).__name__.startswith(name))
    shared = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}
    sizes = {} if "image" in arguments else {"height": 32, "width": 32}
    wanted = {"prompt": "a red circle on a green background"} | given | shared | sizes | arguments
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # control images are encoded with noise that no generator can be given for
        return pipe(generator=torch.Generator().manual_seed(seed), **wanted).images
