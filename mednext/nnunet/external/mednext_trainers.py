"""What nnU-Net finds where nnUNet_extTrainer leads it: it imports each module of this folder and looks for its class.

The trainers themselves live in the package, so that nnU-Net's clean-up of this folder's modules leaves them alone.
"""

from mednext.nnunet.trainer import *  # noqa: F403
