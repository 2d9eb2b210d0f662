"""A page to try pruning on: a prompt in, the plain and the pruned picture out, on this machine alone.

Start with `drawing`, which draws and gives results, of `requests` that name one of `methods`; `code` writes what does
the same. None of these knows the page, which `page` makes with Gradio. Needs the extra `app`.
"""
