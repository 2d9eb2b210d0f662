"""The program that draws what the page drew."""

from __future__ import annotations

import torch

from tokenprune.app.requests import Request
from tokenprune.bench.subjects.pipelines import DTYPES, Subject
from tokenprune.embedded.load import EMBEDDED


def code_of(subject: Subject, request: Request) -> str:
    """A program in Python that draws the pruned picture of a request, prints the report and writes its page."""
    imported, loaded = _loading(subject)
    arguments = {
        "num_inference_steps": request.steps,
        "guidance_scale": subject.scale(request.guidance_scale),
        **subject.arguments,
    }
    given = [f"{name}={value!r}" for name, value in arguments.items() if value is not None]
    call = [repr(request.prompt), *given, f"generator=torch.Generator().manual_seed({request.seed})"]
    pruning = request.pruning.code.format(value=request.value, full_steps=request.full_steps)
    lines = [
        "import torch",
        imported,
        "",
        "import tokenprune",
        "",
        f"pipe = {loaded}",
        f"with tokenprune.apply(pipe, {pruning}, trace=True) as handle:",
        "    image = pipe(",
        *(f"        {argument}," for argument in call),
        "    ).images[0]",
        "    print(handle.report())",
        'handle.trace.save_html("run.html", picture=image)',
    ]
    return "\n".join(lines) + "\n"


def _loading(subject: Subject) -> tuple[str, str]:
    """What to import for a pipeline, and what loads it."""
    device, dtype = subject.settings["device"], subject.settings["dtype"]
    if subject.name in EMBEDDED:
        moved = (device, DTYPES[dtype]) != ("cpu", torch.float32)
        place = f".to({device!r}, torch.{dtype})" if moved else ""
        return "from tokenprune.embedded.load import EMBEDDED", f"EMBEDDED[{subject.name!r}].load(){place}"
    variant = subject.settings.get("variant")
    given = [repr(subject.name), f"dtype=torch.{dtype}", *([f"variant={variant!r}"] if variant else [])]
    given += [f"{part}=None" for part in subject.missing]
    loaded = f"DiffusionPipeline.from_pretrained({', '.join(given)}).to({device!r})"
    return "from diffusers import DiffusionPipeline", loaded
