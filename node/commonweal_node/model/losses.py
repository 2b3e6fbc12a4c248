"""Losses from hidden states, and their gradients: the formulas only, with no model, no rows and no weights.

For hidden states h (N, H) of a head with weight W (V, H) and bias c, logits are z = h Wᵀ + c and p = softmax(z). Logits
are float32 and are made chunk by chunk, so a large vocabulary costs 24 MiB and not gigabytes:

    cross entropy   L = −Σ log p[target]                          dL/dz = p − onehot
    log p[target]   one for each token                            dL/dz = g (onehot − p), g from above
    KL to the base  L = Σ KL(p ‖ q), q the base's                 dL/dz = p ∘ (log p − log q − KL)

The preference losses take the log-probability of whole answers, summed over their tokens (DPO, arXiv 2305.18290) or
as a mean (SimPO, arXiv 2405.14734, which needs no reference).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

_LOGITS_CHUNK_ELEMENTS = 6 << 20


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    chunk = max(1, _LOGITS_CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + chunk) for start in range(0, rows, chunk)]


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient for h is made in the same pass as the loss, so logits are computed once."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
    ) -> Tensor:
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for part in _chunks(len(hidden), len(weight)):
            want = targets[part, None]
            logp = torch.log_softmax(linear(hidden[part], weight, bias).float(), dim=-1)
            total -= logp.gather(1, want).sum(dtype=torch.float64)
            if grad is not None:
                probabilities = logp.exp_()
                probabilities.scatter_add_(1, want, probabilities.new_full(want.shape, -1.0))
                grad[part] = probabilities.to(weight.dtype) @ weight
        ctx.grad = grad
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (torch's own context)
        return ctx.grad * grads[0].to(ctx.grad.dtype), None, None, None


class _TokenLogProbabilities(torch.autograd.Function):
    """Logits are computed again backwards: what comes from above is known only then."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
    ) -> Tensor:
        found = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for part in _chunks(len(hidden), len(weight)):
            logp = torch.log_softmax(linear(hidden[part], weight, bias).float(), dim=-1)
            found[part] = logp.gather(1, targets[part, None])[:, 0]
        ctx.save_for_backward(hidden, weight, bias, targets)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (torch's own context)
        hidden, weight, bias, targets = ctx.saved_tensors
        grad = torch.empty_like(hidden)
        for part in _chunks(len(hidden), len(weight)):
            above = grads[0][part, None]
            probabilities = torch.softmax(linear(hidden[part], weight, bias).float(), dim=-1).mul_(-above)
            probabilities.scatter_add_(1, targets[part, None], above)
            grad[part] = probabilities.to(weight.dtype) @ weight
        return grad, None, None, None


class _SummedBaseKl(torch.autograd.Function):
    """The gradient is made in the same pass; none goes to the base's hidden states."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        hidden: Tensor,
        base_hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for part in _chunks(len(hidden), 2 * len(weight)):
            logp = torch.log_softmax(linear(hidden[part], weight, bias).float(), dim=-1)
            ratio = logp - torch.log_softmax(linear(base_hidden[part], weight, bias).float(), dim=-1)
            probabilities = logp.exp_()
            divergence = (probabilities * ratio).sum(dim=-1, keepdim=True)
            total += divergence.sum(dtype=torch.float64)
            if grad is not None:
                grad[part] = (ratio.sub_(divergence).mul_(probabilities)).to(weight.dtype) @ weight
        ctx.grad = grad
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (torch's own context)
        return ctx.grad * grads[0].to(ctx.grad.dtype), None, None, None


def summed_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Nats, summed; a float64 scalar. ``targets`` is (N,) int64."""
    loss: Tensor = _SummedCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]  # torch
    return loss


def token_log_probabilities(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """(N,) float32, in nats: what the model gives to each target."""
    found: Tensor = _TokenLogProbabilities.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]  # torch
    return found


def summed_base_kl(hidden: Tensor, base_hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """KL(adapted ‖ base) over the whole vocabulary, summed over N tokens; a float64 scalar."""
    loss: Tensor = _SummedBaseKl.apply(hidden, base_hidden, weight, bias)  # type: ignore[no-untyped-call]  # torch
    return loss


def dpo_loss(chosen: Tensor, rejected: Tensor, reference_margin: Tensor, beta: float) -> Tensor:
    """−log σ(β ((log π(chosen) − log π(rejected)) − reference margin)), one for each pair; inputs are summed nats."""
    return -logsigmoid(beta * (chosen - rejected - reference_margin))


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, margin: float) -> Tensor:
    """−log σ(β (chosen − rejected) − margin), one for each pair; inputs are mean nats for each token of an answer."""
    return -logsigmoid(beta * (chosen - rejected) - margin)
