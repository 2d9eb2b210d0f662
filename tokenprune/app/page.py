"""The page, made with Gradio; what it shows comes from `drawing`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from tokenprune.app.drawing import Outcome, Studio
from tokenprune.app.methods import METHODS
from tokenprune.app.requests import Request
from tokenprune.bench.measuring.fidelity import in_words
from tokenprune.errors import TokenPruneError, one_line
from tokenprune.reports.html import facts

FRAME = (
    '<iframe title="every step of the pruned picture" sandbox="allow-scripts" '
    'style="width:100%; height:1000px; border:0" srcdoc="{}"></iframe>'
)
"""Holds the page of steps; nothing in it reaches the page around it."""

STYLE = ".pictures img { image-rendering: pixelated; object-fit: contain !important; width: 100%; height: 100%; }"
"""Small pictures are enlarged pixel by pixel."""


def make_page(studio: Studio, prompt: str, steps: int | None = None) -> gr.Blocks:
    """The page.

    Args:
        studio: draws; the page begins with its first model.
        prompt: to begin with.
        steps: to begin with; None is each model's own number.
    """
    first, method = next(iter(studio.subjects.values())), next(iter(METHODS.values()))
    with gr.Blocks(title="tokenprune", analytics_enabled=False) as page:
        gr.Markdown("# tokenprune\nOne prompt, drawn by the plain model and pruned. Nothing leaves this machine.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                asked = gr.Textbox(prompt, label="Prompt", lines=2, max_lines=6, submit_btn=False)
                button = gr.Button("Draw", variant="primary")
                model = gr.Dropdown(list(studio.subjects), value=first.name, label="Model")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, min_width=90)
                    count = gr.Number(steps or first.steps, label="Steps", precision=0, min_width=90)
                    guidance = gr.Number(first.guidance_scale, label="Guidance", min_width=90, visible=first.guided)
                chosen = gr.Radio(list(METHODS), value=method.name, label="Prune by")
                value = gr.Number(method.usual, label=method.name, info=method.meaning, step=0.05)
                full = gr.Number(8, label="Full steps at the start", precision=0, visible=method.warms_up)
            with gr.Column(scale=2, min_width=280):
                with gr.Row(elem_classes="pictures"):
                    shared: dict[str, Any] = {
                        "format": "png",
                        "buttons": ["download"],
                        "interactive": False,
                        "height": 300,
                    }
                    plain = gr.Image(label="plain", min_width=120, **shared)
                    pruned = gr.Image(label="pruned", min_width=120, **shared)
                report = gr.HTML(label="Report", padding=True)
        with gr.Tab("Every step"):
            frame = gr.HTML("<p>Draw something first.</p>", padding=True)
            saved = gr.File(label="This page as a file", interactive=False, height=90)
        with gr.Tab("Code"):
            code = gr.Code(language="python", label="Draws the pruned picture", interactive=False, wrap_lines=True)

        def offer(name: str) -> tuple[Any, Any]:
            subject = studio.subjects[name]
            return steps or subject.steps, gr.Number(value=subject.guidance_scale, visible=subject.guided)

        def explain(name: str) -> tuple[Any, Any]:
            one = METHODS[name]
            return (
                gr.Number(value=one.usual, label=name, info=one.meaning),
                gr.Number(visible=one.warms_up),
            )

        def draw(
            name: str,
            prompt: str,
            seed: int,
            steps: int,
            scale: float | None,
            method: str,
            value: float,
            full_steps: int,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> Iterator[tuple[Any, ...]]:
            def tell(picture: str, step: int) -> None:
                progress((min(step, steps), steps), desc=f"{picture} picture", unit="steps")

            yield None, None, "", "", None, ""
            try:
                request = Request(name, prompt, seed, steps, scale, method, value, full_steps)
                for outcome in studio.draw(request, tell):
                    yield _shown(outcome)
            except (TokenPruneError, ValueError, TypeError) as error:
                raise gr.Error(html.escape(one_line(error)), duration=None, print_exception=False) from error

        model.change(offer, model, [count, guidance], api_visibility="private")
        chosen.change(explain, chosen, [value, full], api_visibility="private")
        gr.on(
            [button.click, asked.submit],
            draw,
            [model, asked, seed, count, guidance, chosen, value, full],
            [plain, pruned, report, frame, saved, code],
            concurrency_limit=1,
            show_progress_on=[plain, pruned],
            api_visibility="private",
        )
    return page


def serve(page: gr.Blocks, port: int | None = None, opened: bool = False, as_json: bool = False) -> None:
    """Serve the page on this machine only until the process is interrupted; print its address first.

    Args:
        page: of `make_page`.
        port: None takes the first free one from 7860 on.
        opened: whether to open a browser.
        as_json: whether to print the address as a JSON object, for programs that start the page.

    Raises:
        OSError: the port is taken.
    """
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=opened,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=["settings"],
        css=STYLE,
    )
    print(json.dumps({"address": address}) if as_json else f"tokenprune app: {address} (Ctrl+C ends it)", flush=True)
    page.block_thread()


def _shown(outcome: Outcome) -> tuple[Any, ...]:
    """What goes into the page, in the order of its outputs."""
    if outcome.pruned is None or outcome.report is None or outcome.page is None:
        return outcome.plain.picture, None, "", "", None, outcome.code
    rows: list[tuple[str, object]] = [
        ("PSNR to the plain picture", f"{in_words(outcome.psnr, None)}{'' if outcome.psnr is None else ' dB'}"),
        ("plain picture", f"{outcome.plain.seconds:.2f} s"),
        ("pruned picture, traced", f"{outcome.pruned.seconds:.2f} s"),
        *(("note", note) for note in outcome.notes),
    ]
    return (
        outcome.plain.picture,
        outcome.pruned.picture,
        facts("Pictures", rows) + outcome.report._repr_html_(),
        FRAME.format(html.escape(outcome.page.read_text(encoding="utf-8"))),
        str(outcome.page),
        outcome.code,
    )
