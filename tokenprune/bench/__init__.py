"""Measuring plans, rivals and peers on pipelines; needs the extra `cli`.

`subjects` are the pipelines and prompts, `configurations` what is compared (suites, peers), `measuring` draws, times
and compares pictures, `tuning` searches, `tables` renders results, `studies` are single questions with a command each,
`figures` the paper's figures; `commands.py` has what every command checks before it works. Nothing in the package but
the command line imports it. Start with `measuring/run.py`.
"""
