"""The number formats of forward and backward passes.

In all of them the loss is fp32, and so is the gradient that leaves a backward pass into an fp32 parameter's `.grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fourminutes.plan.run import Precision

# Their outputs, and the gradients that they pass back, are numbers that they were given, or zero: nothing to round.
_PASS_ON = (nn.Sequential, nn.ReLU, nn.Flatten, nn.Identity)


def settle_arithmetic() -> None:
    """Let sums be fp32: never TF32 with its 10 bits, nor in half precision; choose cuDNN's kernels for equal bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def in_precision(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """The module that runs `model` in `precision`: images (fp32) to logits (fp32), of `model`'s shapes.

    Its parameters are `model`'s own: what the optimizer updates, and what DistributedDataParallel averages. The keys of
    `model`'s state dict stay as they are. To be called once a model, after its batch norms have their final form.

    ``fp32``
        `model` itself.
    ``bf16``, ``amp``
        Autocast to bf16 or fp16, by torch's own choice of operations; parameters and gradients are fp32.
    ``half``
        Weights and activations in fp16 under fp32 masters (Micikevicius et al. 2017, arXiv:1710.03740), as in
        arXiv:1807.11205. The parameters are the masters; every forward pass casts the images, and each layer its own
        weights as it runs, to fp16. The cast's backward turns the fp16 gradient into fp32, so that micro-batches add
        up in fp32, right after the layer's own backward: a reduction of gradients runs beside the rest of the pass.
        Batch norm keeps γ, β, running and batch statistics in fp32; what goes in and comes out is fp16.
    ``half-lars``
        The same passes without masters: the parameters themselves become fp16 here, γ and β among them, and so are
        gradients, momentum and updates. Running statistics stay fp32.

    On a GPU the fp16 tensors are real ones. A CPU computes in fp16 many times slower than in fp32, so there fp16 is a
    storage format only, and the arithmetic between load and store is fp32. Rounded to fp16 are the images, the weights,
    what every module hands on (each convolution, norm, pool and linear layer, and each residual block after its sum and
    ReLU), the gradient that comes back to each of those places, and the gradient of every weight. So what is beyond
    65,504 becomes infinite and what is 2⁻²⁵ or less becomes zero, as in real fp16. Where two branches' gradients
    meet, their sum is rounded once; real fp16 rounds each of the two first.
    """
    match precision:
        case "fp32":
            return model
        case "bf16":
            return _Autocast(model, device.type, torch.bfloat16)
        case "amp":
            return _Autocast(model, device.type, torch.float16)
        case "half-lars":
            _to_half(model)
    if _has_half_arithmetic(device):
        return _Half(model, _halved)
    _round_outputs(model)
    return _Half(model, _round)


def arithmetic(precision: Precision, device: torch.device) -> str:
    """The formats that a run in `precision` really computes in on `device`, for its record."""
    match precision:
        case "fp32":
            return "fp32"
        case "bf16":
            return "bf16 autocast"
        case "amp":
            return "fp16 autocast"
    return "fp16" if _has_half_arithmetic(device) else f"fp16 storage, fp32 arithmetic ({device.type.upper()})"


def stores_half(precision: Precision) -> bool:
    """Whether weights and activations are stored in fp16."""
    return precision in ("half", "half-lars")


def uses_loss_scale(precision: Precision) -> bool:
    """Whether gradients pass through fp16, whose range ends at 2⁻²⁴ below and 65,504 above."""
    return precision in ("amp", "half", "half-lars")


class _Autocast(nn.Module):
    """Runs a model under autocast."""

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._device_type, self._dtype = device_type, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device_type, self._dtype):
            logits: Tensor = self.model(images)
        return logits.float()


class _Half(nn.Module):
    """Runs a model on copies of its weights, made by `store`; batch norm's are fp32 copies, or its own where fp32."""

    def __init__(self, model: nn.Module, store: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._store = store
        for module in model.modules():
            if module._parameters:
                _run_on_copies(module, torch.Tensor.float if isinstance(module, _BatchNorm) else store)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self._store(images))
        return logits.float()


def _run_on_copies(module: nn.Module, copy: Callable[[Tensor], Tensor]) -> None:
    """Let `module` hold copies of its parameters while it runs.

    Made there and not before the whole pass: autograd goes back through what was made last first, so that casts made
    before all layers would hand on every gradient after the last layer's backward, and nothing of their reduction
    could be hidden behind it.
    """
    masters: dict[str, nn.Parameter | None] = {}

    # Of the module that runs, which may be a copy of this one.
    def hold_copies(module: nn.Module, _inputs: Any) -> None:
        masters.update(module._parameters)
        for name, master in masters.items():
            if master is not None:
                module._parameters[name] = copy(master)  # type: ignore[assignment]

    def hold_masters(module: nn.Module, _inputs: Any, _output: Any) -> None:
        module._parameters.update(masters)

    module.register_forward_pre_hook(hold_copies)
    module.register_forward_hook(hold_masters, always_call=True)


def _halved(x: Tensor) -> Tensor:
    """`x` in fp16; torch 2.11 cannot compile a call of `torch.Tensor.half` itself, and leaves every cast alone."""
    return x.half()


def _there_and_back(x: Tensor) -> Tensor:
    """`x` in fp16, and that in fp32."""
    return _opaque(x) if torch.compiler.is_compiling() else x.half().float()


@torch.library.custom_op("fourminutes::there_and_back", mutates_args=())
def _opaque(x: Tensor) -> Tensor:
    """`_there_and_back` for the compiler, which would leave out such a conversion if it saw it."""
    return x.half().float()


@_opaque.register_fake
def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


class _Rounded(torch.autograd.Function):
    """y = x rounded to fp16, kept in fp32; the gradient likewise, in x's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return _there_and_back(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return _there_and_back(gradient).to(ctx.dtype)


_round: Callable[[Tensor], Tensor] = _Rounded.apply


def _round_outputs(model: nn.Module) -> None:
    """Let every module of `model` hand on fp16 numbers, and get fp16 gradients back."""
    for module in model.modules():
        if not isinstance(module, _PASS_ON):
            module.register_forward_hook(lambda _module, _inputs, output: _round(output))


def _to_half(model: nn.Module) -> None:
    """Turn the parameters into fp16 where they are: those who hold them, as an optimizer does, hold the new ones."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()


def _has_half_arithmetic(device: torch.device) -> bool:
    return device.type != "cpu"
