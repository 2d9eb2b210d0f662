"""Small text-to-image pipelines trained by this project, and the drawn scenes they were trained on.

load.py loads the pipelines in `weights/`, scenes.py draws captioned scenes, captions.py reads a caption back into a
scene, and score.py a picture, without any network; `training/` trained the weights. Imports diffusers, and nothing else
of ours. Start with `load.py`.
"""
