"""Many pictures into a folder, with a plan, by one process or many; needs the extra `cli`.

`jobs` are what is to be drawn, `folder` is where it goes and what is there already, `painter` draws, `run` shares the
work among the processes that `accelerate launch` starts, `ray_data` among the workers of a Ray Data job.
"""
