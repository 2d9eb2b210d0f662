"""Training of the embedded pipelines, stage by stage: text encoders, VAE, diffusion transformer.

Each stage is one file with one `train(...)`; `python -m tokenprune.embedded.training` runs them in order. Every
stage checkpoints and resumes; all run on CUDA when there is one and on the CPU otherwise.
"""
