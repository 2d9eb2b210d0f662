"""The hooks on a model, and what they drive; docs/how-it-works.md follows one pruned step through these files.

Start with `masked_module.py`: one model with its hooks, from the start of a call to its end. `*_hooks.py` are the
hooks, a file for each kind of module that carries them; `sites.py` holds what they find there; `installation.py` puts
them on and takes them off; `step_tracker.py` tells steps, guidance branches and generations apart; `generation.py` is
what is known of the one under way. Imports policies, reuse, reports, modulemap and all below; no model, command or
diffusers.
"""
