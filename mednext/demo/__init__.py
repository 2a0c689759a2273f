"""The demo: trains small MedNeXts on a real brain scan that comes with nilearn, and reports what it measured.

`pipeline` is the story from start to end; `settings` what can be chosen; `brain` the data; `training` one network's
epochs and their checkpoints; `evaluation` Dice; `comparison` and `memory` the same network in plain PyTorch;
`figures` and `report` what is written.
"""
