"""Pictures of the latents on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokenprune.errors import ConfigurationError


class Previews:
    """Decodes the latents of some steps while a pipeline of diffusers draws, for `tokenprune.reports.viewer`.

        previews = Previews(pipe, every=4)
        with tokenprune.apply(pipe, CATPolicy(), trace=True) as handle:
            image = pipe(prompt, callback_on_step_end=previews).images[0]
        handle.trace.save_html("run.html", picture=image, previews=previews.pictures)

    Decoding takes time between steps, and none of the model's seconds in a report. The pictures are those of the latest
    generation; that of a step is what the sampler made of the model's prediction there.

    Args:
        pipe: the pipeline; its VAE decodes latents [B, C, height, width].
        every: decodes the steps 0, `every`, 2 `every`, ...
        decode: makes pictures of the latents that the pipeline hands its callbacks, where these are of another form
            (packed as in Flux, or a video's); anything that `save_html` takes for a picture.

    Attributes:
        pictures: by step.

    Raises:
        ConfigurationError: the pipeline has no VAE to decode with, and there is no `decode`; or, at the first step, the
            latents have another form.
    """

    def __init__(self, pipe: Any, every: int = 1, decode: Callable[[Tensor], Any] | None = None) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigurationError(f"every: expected a whole number of steps of at least 1, got {every!r}")
        parts = getattr(pipe, "components", {})
        if decode is None and (parts.get("vae") is None or getattr(pipe, "image_processor", None) is None):
            raise ConfigurationError(
                f"previews: expected a pipeline with a VAE and an image processor, got a {type(pipe).__name__}; pass "
                f"decode=, a function from its latents to pictures"
            )
        self.pictures: dict[int, Any] = {}
        self._pipe = pipe
        self._every = every
        self._decode = decode or self._decode_latents

    def __call__(self, pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Take in a step: the signature of diffusers' `callback_on_step_end`; changes nothing."""
        if step == 0:
            self.pictures = {}
        if step % self._every == 0:
            self.pictures[step] = self._decode(given["latents"])
        return given

    def _decode_latents(self, latents: Tensor) -> Any:
        vae = self._pipe.vae
        channels = vae.config.get("latent_channels")
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ConfigurationError(
                f"previews: expected latents [B, {channels}, height, width] of the {type(self._pipe).__name__}, got "
                f"{list(latents.shape)}; pass decode=, a function from these to pictures"
            )
        scaled = latents.to(vae.dtype) / (vae.config.get("scaling_factor") or 1) + (vae.config.get("shift_factor") or 0)
        decoded = vae.decode(scaled, return_dict=False)[0].detach()
        return self._pipe.image_processor.postprocess(decoded, output_type="pil")
