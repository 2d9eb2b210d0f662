"""Traces as a page to look at: one HTML file that holds all that it shows, for any browser, without a server.

Start with `page.py`: `save_html` puts together what `tokens.py` makes of traces and `pictures.py` of pictures, and
renders `template.html.jinja` with `viewer.css` and `viewer.js`. Needs the extra `viewer`. Imports `tokenprune.ops`,
`tokenprune.errors`, and of `tokenprune.reports` all but `trace.py`, which imports it.
"""

from tokenprune.reports.viewer.page import Run, save_html
from tokenprune.reports.viewer.previews import Previews
from tokenprune.reports.viewer.tokens import Traced

__all__ = ["Previews", "Run", "Traced", "save_html"]
