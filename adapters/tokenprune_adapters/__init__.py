"""Module maps for diffusers' diffusion transformers, one file per family."""
