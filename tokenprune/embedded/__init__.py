"""Small text-to-image pipelines trained by this project, and the drawn scenes they were trained on.

`scenes` draws captioned scenes, `score` reads a picture back into a scene without any network, `training`
trains the pipelines that ship in `weights/`, `load` loads them.
"""
