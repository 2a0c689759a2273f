"""The trainers nnUNetTrainer_MedNeXt_{S,B,M,L}_kernel{3,5,7} for nnU-Net v2.

Training is as published (Roy et al., MICCAI 2023, and their nnU-Net v1 trainers): AdamW with a learning rate of 1e-3,
eps 1e-4 (1e-8 can give NaN in float16) and weight decay 3e-5, gradients clipped at 12, nnU-Net's polynomial schedule
and its deep supervision. Everything else (data, augmentation, loss, logging, checkpoints, compilation, processes) is
nnU-Net's own. :class:`mednext.nnunet.options.Options` are what can be changed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.parallel import DistributedDataParallel

from mednext.network import MedNeXt
from mednext.nnunet.network import network_of_plan, scales_of, strides_of
from mednext.nnunet.options import Options
from mednext.nnunet.pretrained import PretrainedWeights

__all__ = ["MedNeXtTrainer"]


class MedNeXtTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a MedNeXt and its optimizer; a subclass names the network."""

    variant: ClassVar[str] = "S"
    kernel_size: ClassVar[int] = 3

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - as nnU-Net's trainer, which inspects the signature
    ) -> None:
        self.options = Options.from_environment()  # before nnU-Net makes its folder
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.options.learning_rate
        self.weight_decay = 3e-5
        self.num_epochs = self.options.epochs
        self.num_iterations_per_epoch = self.options.iterations
        self.num_val_iterations_per_epoch = self.options.validation_iterations
        self.save_every = self.options.save_every
        if self.options.dtype == "bfloat16":
            self.grad_scaler = None
        self._pretrained: PretrainedWeights | None = None

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> MedNeXt:
        """The network for the plan; nnU-Net calls this to train and, on the class alone, to predict."""
        options = Options.from_environment()
        # nnU-Net enters autocast without a dtype, in training and in prediction.
        torch.set_autocast_dtype("cuda", getattr(torch, options.dtype))
        return network_of_plan(
            cls.variant,
            cls.kernel_size,
            configuration_manager.network_arch_init_kwargs,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
            None if options.recompute == "none" else options.recompute,
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW and nnU-Net's polynomial schedule."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, eps=1e-4
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Of MedNeXt's five outputs; nnU-Net makes its targets and its loss weights from them."""
        if not self.enable_deep_supervision:
            return None
        return scales_of(strides_of(self.configuration_manager.network_arch_init_kwargs))

    def initialize(self) -> None:
        """Builds everything; from here until the training starts the network takes pretrained weights."""
        super().initialize()
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        network = getattr(network, "_orig_mod", network)
        self._pretrained = PretrainedWeights(network, self.print_to_log_file)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """As nnU-Net: strict, with the state of the optimizer, the schedule and the log."""
        if not self.was_initialized:
            self.initialize()
        self._no_more_pretrained_weights()
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self._no_more_pretrained_weights()
        self.print_to_log_file(f"{type(self).__name__}: {self.options}")
        super().on_train_start()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        self._no_more_pretrained_weights()
        super().perform_actual_validation(save_probabilities)

    def _no_more_pretrained_weights(self) -> None:
        if self._pretrained is not None:
            self._pretrained.close()
            self._pretrained = None


for _variant in "SBML":
    for _kernel_size in (3, 5, 7):
        _name = f"nnUNetTrainer_MedNeXt_{_variant}_kernel{_kernel_size}"
        _doc = f"MedNeXt {_variant} with {_kernel_size}x{_kernel_size}x{_kernel_size} kernels."
        globals()[_name] = type(
            _name,
            (MedNeXtTrainer,),
            {"variant": _variant, "kernel_size": _kernel_size, "__module__": __name__, "__doc__": _doc},
        )
        __all__ += [_name]
