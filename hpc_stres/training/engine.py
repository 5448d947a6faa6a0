"""Who reduces gradients: DeepSpeed or torch DDP behind one small interface."""

import contextlib
import logging
import shlex
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpc_stres.config.schema import TrainingConfig
from hpc_stres.models.exact.session import Session
from hpc_stres.models.norm import SubBatchNorm2d
from hpc_stres.models.temporal import TemporalConv

MOMENTUM = "momentum_buffer"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Published multipliers: weights 1, decayed; biases 2; normalisation gain 2, offset 1; temporal
    bias 1, decayed.

    Classifiers are in groups of their own, for they may be trained alone at first.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, SubBatchNorm2d):
                multiplier, decay = (2.0, 0.0) if name == "weight" else (1.0, 0.0)
            elif name == "bias" and not isinstance(module, TemporalConv):
                multiplier, decay = 2.0, 0.0
            else:
                multiplier, decay = 1.0, weight_decay
            groups.setdefault((isinstance(module, nn.Linear), multiplier, decay), []).append(
                parameter
            )
    return [
        {"params": parameters, "multiplier": multiplier, "decay": decay, "classifier": classifier}
        for (classifier, multiplier, decay), parameters in sorted(
            groups.items(), key=lambda item: item[0]
        )
    ]


class Engine(ABC):
    """Forward, backward and step of one network over all ranks."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, exact: Session | None = None
    ) -> None:
        self.model = model
        # In a bitwise training who adds up the gradients, in place of the engine.
        self.exact = exact
        groups = parameter_groups(model, config.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=1.0, momentum=config.momentum)

    @abstractmethod
    def backward(self, loss: Tensor | None, last: bool) -> None:
        """Add one micro-step's gradients of a loss that is already divided by the global
        number of videos.

        `loss` is None where this rank has nothing in the micro-step; the last one is never empty.
        """

    def backward_exactly(self, losses: list[Tensor]) -> None:
        """Go back from the units' losses of one micro-step; what they add goes
        into the exact sums."""
        torch.autograd.backward(losses)

    @abstractmethod
    def forward(self, last: bool, *arguments: Any) -> Any:
        """The network's output for one micro-step."""

    def _take_exact_gradients(self) -> None:
        """Give the exact sums of all ranks to the parameters."""
        assert self.exact is not None
        for name, parameter in self.exact.parameters.items():
            if parameter.grad is not None:
                raise AssertionError(f"{name} got a gradient beside the exact sums")
        self.exact.write_gradients()

    @abstractmethod
    def step(self, rate: float, classifier_only: bool = False) -> None:
        """One SGD step with the gradients of all ranks, summed; of the classifiers alone where
        that is asked for."""

    def _set_rate(self, rate: float, classifier_only: bool) -> None:
        for group in self.optimizer.param_groups:
            moves = group["classifier"] or not classifier_only
            group["lr"] = rate * group["multiplier"] if moves else 0.0
            group["weight_decay"] = group["decay"] if moves else 0.0

    def forget_trunk_momentum(self) -> None:
        """The trunk's momentum to zero: it begins to move, and its gradients so
        far were not used."""
        momentum = self.momentum()
        self.load_momentum(
            {n: v if ".fc." in n else torch.zeros_like(v) for n, v in momentum.items()}
        )

    def momentum(self) -> dict[str, Tensor]:
        """Momentum of each parameter by name, whole on every rank."""
        return {
            name: self.optimizer.state[parameter][MOMENTUM]
            for name, parameter in self.model.named_parameters()
            if MOMENTUM in self.optimizer.state[parameter]
        }

    def load_momentum(self, momentum: dict[str, Tensor]) -> None:
        """The way back from `momentum`."""
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                value = momentum[name].to(parameter.device, parameter.dtype)
                self.optimizer.state[parameter][MOMENTUM] = value.contiguous(
                    memory_format=torch.preserve_format
                )

    @abstractmethod
    def close(self) -> None:
        """Release what the engine holds."""


def _add_up(
    _state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch reads this and refuses any other
) -> torch.futures.Future[Tensor]:
    """DDP's reduction of one bucket: the sum over the ranks, for the loss is normalised already."""
    reduction = dist.all_reduce(bucket.buffer(), async_op=True)
    return reduction.get_future().then(lambda done: done.value()[0])


class DdpEngine(Engine):
    """torch's DistributedDataParallel."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, device: torch.device, exact: Session | None
    ) -> None:
        super().__init__(model, config, exact)
        self.ranks = dist.get_world_size()
        self.wrapped: nn.Module = model
        if self.ranks > 1 and exact is None:
            ids = [device.index] if device.type == "cuda" else None
            # Two things DDP does otherwise in the first step after a start than in later ones, so
            # that a run which was resumed on three ranks or more would differ from an undisturbed
            # one by rounding: it divides by the ranks in another way (none here: `_add_up` sums),
            # and it cuts its buckets anew after that step (not where it looks for unused
            # parameters), which lets the ranks' gradients be added in another order.
            wrapped = nn.parallel.DistributedDataParallel(
                model,
                device_ids=ids,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=True,
            )
            wrapped.register_comm_hook(None, _add_up)
            self.wrapped = wrapped
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")

    def forward(self, last: bool, *arguments: Any) -> Any:
        with self._sync(last):
            return self.wrapped(*arguments)

    def backward(self, loss: Tensor | None, last: bool) -> None:
        if loss is not None:
            with self._sync(last):
                loss.backward()

    def _sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if last or not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def step(self, rate: float, classifier_only: bool = False) -> None:
        self._set_rate(rate, classifier_only)
        if self.exact is not None:
            self._take_exact_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.exact is not None)

    def close(self) -> None:
        self.wrapped = self.model


class DeepSpeedEngine(Engine):
    """DeepSpeed, ZeRO stage 0 or 1. ZeRO keeps its master weights in float32, whatever
    the network's type."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, micro_steps: int, exact: Session | None
    ) -> None:
        super().__init__(model, config, exact)
        deepspeed = import_deepspeed()
        self.ranks = dist.get_world_size()
        self.micro_steps = micro_steps
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(config, micro_steps, self.ranks),
        )
        # DeepSpeed refuses to reduce float64 gradients: without ZeRO we add them up over the
        # ranks ourselves.
        self.reduces_itself = config.precision == "float64" and config.zero_stage == 0
        if self.reduces_itself or exact is not None:
            self.engine.enable_backward_allreduce = False

    def forward(self, last: bool, *arguments: Any) -> Any:
        # Its own forward pass prepares a reduction.
        return self.engine(*arguments) if self.exact is None else self.model(*arguments)

    def backward(self, loss: Tensor | None, last: bool) -> None:
        if self.exact is not None:
            return
        self.engine.set_gradient_accumulation_boundary(last)
        if loss is not None:
            # DeepSpeed averages over the ranks and over the micro-steps.
            self.engine.backward(loss * (self.ranks * self.micro_steps))
        if not last:
            self.engine.step()

    def step(self, rate: float, classifier_only: bool = False) -> None:
        self._set_rate(rate, classifier_only)
        if self.exact is not None:
            self.engine.set_gradient_accumulation_boundary(True)
            self._take_exact_gradients()
        elif self.reduces_itself:
            for parameter in filter(lambda p: p.requires_grad, self.model.parameters()):
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(self.ranks)  # type: ignore[union-attr]
        self.engine.step()

    def momentum(self) -> dict[str, Tensor]:
        if self.engine.zero_optimization_stage() == 0:
            return super().momentum()
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_partitions()
        momenta = {}
        for name, parameter in self.model.named_parameters():
            value = safe_get_full_optimizer_state(parameter, MOMENTUM)
            if value is not None:
                momenta[name] = value
        return momenta

    def load_momentum(self, momentum: dict[str, Tensor]) -> None:
        if self.engine.zero_optimization_stage() == 0:
            super().load_momentum(momentum)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        zero = self.engine.optimizer
        for flat in zero.single_partition_of_fp32_groups:
            # SGD makes its momentum at the first step; the partitions need theirs now.
            zero.optimizer.state[flat].setdefault(MOMENTUM, torch.zeros_like(flat))
        self._link_partitions()
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                safe_set_full_optimizer_state(
                    parameter, momentum[name].to(parameter.device).float(), MOMENTUM
                )

    def _link_partitions(self) -> None:
        """Link every group's momentum to its parameters. DeepSpeed links after its first group's
        first step, when the other groups have none yet."""
        self.engine.optimizer._hp_optimizer_states_linked = False
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        self.engine.destroy()


def import_deepspeed() -> Any:
    """DeepSpeed, with its chatter kept to warnings."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    from torch.utils import cpp_extension

    # torch hands this path to the linker unquoted when DeepSpeed builds its kernel; a space in it
    # would break that.
    if " " in str(cpp_extension.TORCH_LIB_PATH) and not str(
        cpp_extension.TORCH_LIB_PATH
    ).startswith("'"):
        cpp_extension.TORCH_LIB_PATH = shlex.quote(str(cpp_extension.TORCH_LIB_PATH))
    import deepspeed

    # On a CPU it would compile a shared-memory kernel at its first start: 40 s and 1.5 GB a rank,
    # and no start at all without g++. Gloo, which is there anyway, does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def deepspeed_config(config: TrainingConfig, micro_steps: int, ranks: int) -> dict[str, Any]:
    """DeepSpeed's config from ours. It counts one unit a rank and micro-step: uneven cuts are
    weighted by the loss."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": micro_steps * ranks,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": config.zero_stage},
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        **config.deepspeed,
    }


def make_engine(
    model: nn.Module,
    config: TrainingConfig,
    device: torch.device,
    micro_steps: int,
    exact: Session | None = None,
) -> Engine:
    """The configured engine around a network; with a session it reduces nothing itself."""
    if config.engine == "ddp":
        return DdpEngine(model, config, device, exact)
    return DeepSpeedEngine(model, config, micro_steps, exact)
