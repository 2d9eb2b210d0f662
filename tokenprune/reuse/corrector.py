"""Making good what forecasts did to the latents, once the next prediction is known."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.setting_types import Settings


@dataclass(frozen=True)
class Corrector(Settings):
    """Draw the steps since the last full one again, as they would have been with what is known now.

    Between two full steps the sampler went by forecasts. The second full step shows what they should have been, nearly:
    the values on the line between both predictions, at the times of the steps between. So the sampler takes these steps
    again with those values, from the latents of the first full step on, and goes on from where that leads. It is what
    predictor-corrector methods do (UniPC, Zhao et al., arXiv 2302.04867), with the sampler itself for its formula, so
    that it holds for whichever sampler a pipeline has; exact where the predictions are linear in time.

    The second prediction was made for the uncorrected latents, and answers to their error. With the error e (latents as
    they should be, less those it was made for), the prediction is taken to be off by -s e: so s e is added to it and to
    the forecasts that go out from it, and e = D / (1 - s A), where D is the way from the old latents to those drawn
    again, and A the change of the latter for a unit change of the prediction. s depends on what the model predicts:

    - noise: s = sqrt(sigma), sigma being the noise's share of the latents. Measured on shapes-pixart: 1.0 to 1.5
      where sigma is near 1, 0.7 at 0.45, 0.5 at 0.25.
    - velocity of a rectified flow: s = response * sigma^2. Measured on shapes-sd3: with guidance 4, 7 and 12 about 5,
      10 and 25 sigma^2, falling to 0 with the noise.
    - else: s = 0.

    It needs the sampler, so it works where `apply` is given the pipeline. It leaves alone samplers that draw noise, and
    latents that the pipeline changes between steps.

    Args:
        response: as above, at least 0; 0 keeps predictions as they are, whatever the model predicts (s = 0).

    Raises:
        ValueError: the response is below 0 or not finite.
    """

    response: float = 12.0

    def __post_init__(self) -> None:
        if not 0 <= self.response < float("inf"):
            raise ValueError(f"response: expected a number of at least 0, got {self.response}")
