"""Arguments to call each supported transformer with, as its pipeline would at a size in pixels."""

from tokenprune_adapters.examples.example import Calls, Example, Latents
from tokenprune_adapters.examples.images import IMAGES
from tokenprune_adapters.examples.sequences import SEQUENCES
from tokenprune_adapters.examples.videos import VIDEOS

EXAMPLES: dict[str, Example] = {**IMAGES, **VIDEOS, **SEQUENCES}
"""By the name of the transformer's class."""

__all__ = ["EXAMPLES", "Calls", "Example", "Latents"]
