"""Batch norm's statistics across processes: in training, before an evaluation, and measured anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from fourminutes.comm.topology import group_consecutive
from fourminutes.train.ranks import Ranks


def average_running_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Replace batch norm's running means and variances by their means over all ranks: all evaluate one model."""
    ranks.average_(buffer for norm in _norms(model) for buffer in norm.buffers())


@torch.no_grad()
def recalibrate(network: nn.Module, model: nn.Module, images: Iterable[Tensor], ranks: Ranks) -> None:
    """Measure batch norm's running statistics anew, by the weights as they are now.

    Running statistics trail behind the weights, by about 1 / momentum steps; a run of few large steps is over before
    they have caught up. Here each becomes the plain mean over the batches, then over the ranks. Only the norms are in
    training mode meanwhile; parameters are not touched, and modes and momenta are afterwards as they were.

    Args:
        network: what runs `model` in its precision; not its DDP wrapper.
        model: holds the norms.
        images: at least one batch, as many on every rank, shape (images, 3, h, w), of the size of training's.
        ranks: all of them.
    """
    with _measuring(network, _norms(model)):
        for batch in images:
            network(batch)
    average_running_statistics(model, ranks)


def share_statistics(model: nn.Module, span: int, launch_rank: int, world_size: int) -> nn.Module:
    """`model` with batch norms that normalize over the batches of `span` processes, neighbours by rank, together.

    Names, parameters and state dict stay as they are; with a span of 1 nothing changes. Ranks 0 to span − 1 are
    together, the next span, and so on; `span` divides `world_size`. To be called by all ranks alike, inside the
    process group and before anything is wrapped around `model`, which is changed where it is.

    On a GPU the norms become torch's `SyncBatchNorm`, elsewhere `SharedBatchNorm`, on communicators of their own, so
    that the gradients' collectives, which other threads or streams may issue, never mix with theirs.
    """
    if span == 1:
        return model
    group = _neighbours(span, launch_rank, world_size)
    if next(model.parameters()).is_cuda:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        converted: nn.Module = convert(model, group)  # type: ignore[no-untyped-call]
        return converted
    return _with_shared_norms(model, group)


class SharedBatchNorm(_BatchNorm):
    r"""Batch norm over the batches of all ranks of a group; for the CPU, where torch has none.

    With n_r values a channel on rank r, their mean μ_r and variance σ_r², and N = Σ n_r (the combination of Chan, Golub
    and LeVeque 1979, which subtracts no large numbers from each other)::

        μ = Σ n_r μ_r / N        σ² = Σ n_r (σ_r² + (μ_r − μ)²) / N
        x̂ = (x − μ) / √(σ² + ε)        y = γx̂ + β

    and the running variance takes N/(N − 1)·σ². With g the gradient of y, the backward pass is::

        dβ = Σ g        dγ = Σ gx̂        dx = γ / √(σ² + ε) · (g − Σ' g / N − x̂ Σ' gx̂ / N)

    where Σ runs over this rank's values, for DDP to add up, and Σ' over those of all ranks. Both passes communicate, so
    all ranks of the group have to make them alike; in evaluation mode nothing is communicated.

    Takes and returns (batch, channels, ...), in the input's number format, computed in fp32.

    Args:
        norm: the batch norm, affine and with running statistics, whose tensors and settings this one takes over.
        group: the ranks.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.group = group
        self.training = norm.training
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(self, name, tensor)

    # The compiler would break off at the collective anyway, and say so at length.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the group's statistics in training mode, by the running ones in evaluation mode."""
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        wide = x.float()
        statistics = _combined(wide.detach(), self.group)
        self._track(statistics)
        y = _normalized(wide, self.weight, self.bias, statistics, self.eps, self.group)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, statistics: _Statistics) -> None:
        total, mean, variance = statistics
        running_mean, running_variance, batches = self.buffers()
        batches += 1
        newest = 1 / int(batches) if self.momentum is None else self.momentum
        running_mean.lerp_(mean, newest)
        running_variance.lerp_(variance * total / (total - 1), newest)


class _Statistics(NamedTuple):
    """Values a channel, over all ranks; their means and biased variances, fp32, shape (channels,)."""

    total: int
    mean: Tensor
    variance: Tensor


class _Normalized(torch.autograd.Function):
    """y of `SharedBatchNorm`, whose backward pass knows that the statistics depend on every rank's x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, statistics: _Statistics, eps: float, group: dist.ProcessGroup
    ) -> Tensor:
        ctx.total, mean, variance = statistics
        ctx.group, ctx.eps = group, eps
        ctx.save_for_backward(x, weight, mean, variance)
        return batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight, mean, variance = ctx.saved_tensors
        inverse_deviation = (variance + ctx.eps).rsqrt()
        normalized = (x - _by_channel(mean, x)) * _by_channel(inverse_deviation, x)
        sums = torch.stack([g.sum(_other_dims(x)), (g * normalized).sum(_other_dims(x))])
        dbias, dweight = sums.clone()
        dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gx = (_by_channel(each, x) for each in sums / ctx.total)
        dx = _by_channel(weight * inverse_deviation, x) * (g - mean_g - normalized * mean_gx)
        return dx, dweight, dbias, None, None, None


_normalized: Callable[..., Tensor] = _Normalized.apply


def _combined(x: Tensor, group: dist.ProcessGroup) -> _Statistics:
    """The statistics of `x` over the group, by one collective; combined in fp64."""
    mean = x.mean(_other_dims(x))
    variance = (x - _by_channel(mean, x)).square().mean(_other_dims(x))
    count = torch.full_like(mean[:1], x.numel() // len(mean), dtype=torch.float64)
    own = torch.cat([count, mean.double(), variance.double()])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    everyone = torch.stack(parts)
    counts, means, variances = everyone[:, :1], *everyone[:, 1:].chunk(2, dim=1)
    shares = counts / counts.sum()
    whole_mean = (shares * means).sum(0)
    whole_variance = (shares * (variances + (means - whole_mean).square())).sum(0)
    return _Statistics(int(counts.sum()), whole_mean.float(), whole_variance.float())


def _other_dims(x: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, x.dim())]


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """`values`, shape (channels,), in the form that broadcasts over `x`."""
    return values.view(-1, *[1] * (x.dim() - 2))


def _neighbours(span: int, rank: int, world_size: int) -> dist.ProcessGroup:
    """The communicator of `rank` and those beside it; every rank takes part in building all of them, in one order."""
    groups = {ranks: dist.new_group(list(ranks)) for ranks in group_consecutive(world_size, span)}
    own: dist.ProcessGroup = next(group for ranks, group in groups.items() if rank in ranks)
    return own


def _with_shared_norms(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    if isinstance(model, _BatchNorm):
        return SharedBatchNorm(model, group)
    for name, child in model.named_children():
        setattr(model, name, _with_shared_norms(child, group))
    return model


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _measuring(network: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Within this, only `norms` are in training mode, and their running statistics are means over all batches."""
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
        for norm, momentum in momenta.items():
            norm.momentum = momentum
