"""One small model of every class that has an adapter, what to call it with, and what users want to know of it.

A file for each file of `tokenprune_adapters`; case.py says what a `Tiny` is. A new model is a case in its family's
file, and a new file has a line here: the order is the order of docs/supported-models.md.
"""

from tiny import (
    allegro,
    auraflow,
    bria,
    cogvideox,
    cogview,
    cosmos,
    dit,
    ernie,
    flux,
    helios,
    hidream,
    hunyuan,
    ideogram,
    joyimage,
    kandinsky,
    krea,
    latte,
    ltx,
    lumina,
    minimax,
    mochi,
    motif,
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
    *bria.CASES,
    *qwenimage.CASES,
    *qwenimage.QWEN21,
    *lumina.CASES,
    *hunyuan.IMAGES,
    *cogview.ROTARY,
    *hidream.CASES,
    *omnigen.CASES,
    *prx.CASES,
    *ernie.CASES,
    *krea.CASES,
    *ideogram.CASES,
    *joyimage.CASES,
    *kandinsky.FIVE,
]
VIDEOS = [
    *wan.WAN,
    *wan.CHRONOEDIT,
    *wan.ANYFLOW,
    *hunyuan.VIDEOS,
    *ltx.CASES,
    *cogvideox.COGVIDEOX,
    *cogvideox.CONSISID,
    *mochi.CASES,
    *motif.CASES,
    *helios.CASES,
    *kandinsky.SIX,
    *minimax.CASES,
    *allegro.CASES,
    *cosmos.CASES,
    *cosmos.OMNI,
    *cogvideox.EASYANIMATE,
    *wan.SKYREELS,
    *latte.CASES,
]
ALL = IMAGES + VIDEOS

__all__ = ["ALL", "IMAGES", "TEXT", "VIDEOS", "B", "T", "Tiny", "ids", "noise", "square"]
