"""Small text-to-image pipelines trained by this project, and the drawn scenes they were trained on.

`scenes` draws captioned scenes, `score` reads a picture back into a scene without any network, `train_sd3`
trains the Stable Diffusion 3 pipeline that ships in `weights/`, `load` loads it.
"""
