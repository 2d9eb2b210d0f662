"""One small model of every class that has an adapter, what to call it with, and what users want to know of it.

A file for each file of `tokenprune_adapters`; case.py says what a `Tiny` is. A new model is a case in its family's
file, and a new file has a line here: the order is the order of docs/supported-models.md.
"""

from tiny import (
    allegro,
    auraflow,
    cogvideox,
    cogview,
    cosmos,
    dit,
    ernie,
    flux,
    hidream,
    hunyuan,
    kandinsky,
    krea,
    latte,
    ltx,
    lumina,
    mochi,
    omnigen,
    pixart,
    prx,
    qwenimage,
    sd3,
    wan,
)
from tiny.case import TEXT, B, T, Tiny, ids, noise, square

IMAGES = [
    *sd3.CASES,
    *pixart.CASES,
    *dit.CASES,
    *auraflow.CASES,
    *cogview.PLUS,
    *flux.CASES,
    *qwenimage.CASES,
    *lumina.CASES,
    *hunyuan.IMAGES,
    *cogview.ROTARY,
    *hidream.CASES,
    *omnigen.CASES,
    *prx.CASES,
    *ernie.CASES,
    *krea.CASES,
    *kandinsky.CASES,
]
VIDEOS = [
    *wan.WAN,
    *hunyuan.VIDEOS,
    *ltx.CASES,
    *cogvideox.COGVIDEOX,
    *mochi.CASES,
    *allegro.CASES,
    *cosmos.CASES,
    *cogvideox.EASYANIMATE,
    *wan.SKYREELS,
    *latte.CASES,
]
ALL = IMAGES + VIDEOS

__all__ = ["ALL", "IMAGES", "TEXT", "VIDEOS", "B", "T", "Tiny", "ids", "noise", "square"]
