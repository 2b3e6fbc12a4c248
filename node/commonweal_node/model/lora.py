"""A base model with one set of LoRA tensors at a time: loaded, read back, and the loss at supervised tokens only.

For a linear layer with frozen weight W (out, in), A (r, in), B (out, r) and the spec's scale s (arXiv 2106.09685):

    y  = x Wᵀ + s (x Aᵀ) Bᵀ                       x: (N, in), y: (N, out)
    dx = g W + s (g B) A                          g = dL/dy: (N, out)
    dA = s (g B)ᵀ x,   dB = s gᵀ (x Aᵀ)

A and B are float32 masters; products run in the base's dtype, so in bfloat16 nothing is cast but A and B themselves.
W has no gradient and none is computed. PEFT computes the same numbers through float32 copies of every x and y.

Not thread-safe: one ``AdaptedModel`` has one user at a time. It takes the base over: its layers are replaced.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from commonweal_node.model.attention import Reach, check_packing, longest_text, reaches
from commonweal_node.model.base_model import LoadedBase
from commonweal_node.model.losses import summed_base_kl, summed_cross_entropy, token_log_probabilities
from commonweal_node.model.packing import Batch
from commonweal_node.model.tensors import PEFT_ROOT, AdapterTensors, Slot, check_adapter, slots
from commonweal_protocols.base.errors import BaseModelError
from commonweal_protocols.statements.compact import AdapterSpec


class _LoraProduct(torch.autograd.Function):
    """The formulas of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own context)
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        y = nn.functional.linear(rows, weight, bias)
        y.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (torch's own context)
        rows, low, weight, a, b = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1])
        low_g = (g @ b).mul_(ctx.scaling)
        grad_a = (low_g.t() @ rows).float()
        # (r, N) @ (N, out) runs far faster than its transpose; the master's own layout comes from the last step.
        grad_b = (low.t() @ g).float().mul_(ctx.scaling).t().contiguous()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ weight
            grad_x.addmm_(low_g, a)
            grad_x = grad_x.view(*grads[0].shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None


class _LoraLinear(nn.Module):
    """A frozen linear layer with at most one adapter; ``a`` and ``b`` are set by AdaptedModel."""

    def __init__(self, linear: nn.Linear, scaling: float) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.scaling = scaling
        self.a: nn.Parameter | None = None
        self.b: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if self.a is None or self.b is None:
            return nn.functional.linear(x, self.weight, self.bias)
        y: Tensor = _LoraProduct.apply(x, self.weight, self.bias, self.a, self.b, self.scaling)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y


class AdaptedModel:
    """A frozen base whose spec'd layers take LoRA tensors in and out, so that one load serves every training.

    Args:
        base: Taken over: its layers are replaced, and it must not be used otherwise afterwards.
        spec: Which layers, and their scale, which also holds for a blend's doubled rank.
        threads: CPU threads for all of torch in this process; None leaves torch's own choice.
        checkpointing: Keep only each block's input until the backward pass, which computes the block again: the same
            numbers (arXiv 1604.06174).

    Raises:
        BaseModelError: The base lacks a layer of the spec, a layer's size differs, its logits are not a plain
            linear map of its last hidden states (then the loss here would be a different one), or packed rows are not
            what each row alone is.
    """

    def __init__(
        self, base: LoadedBase, spec: AdapterSpec, threads: int | None = None, *, checkpointing: bool = False
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        _keep_freed_memory()
        self.spec = spec
        self.tokenizer = base.tokenizer
        self._slots = slots(spec)
        self._model = base.model
        self._inner = base.model.base_model
        self._head = base.model.get_output_embeddings()
        self.computed_tokens = 0
        """How many tokens have gone forward so far, padding not counted."""
        self._reaches = reaches(base.model.config)
        self._check_head()
        self._check_packing()
        self._layers = [self._fit(slot) for slot in self._slots]
        if checkpointing:
            self._checkpoint_blocks()

    def _checkpoint_blocks(self) -> None:
        path = self.spec.prefix.removeprefix(PEFT_ROOT)
        for block in self._model.get_submodule(path):
            plain = block.forward

            def again(*args: object, plain: Callable[..., object] = plain, **named: object) -> object:
                # Nothing in a block is random: a base is in evaluation mode, without dropout.
                return checkpoint(partial(plain, **named), *args, use_reentrant=False, preserve_rng_state=False)

            block.forward = again

    def _fit(self, slot: Slot) -> _LoraLinear:
        try:
            linear = self._model.get_submodule(slot.path)
        except AttributeError as error:
            raise BaseModelError(f"base model: wanted the layer {slot.path}, got none (compact.adapter)") from error
        wanted = (slot.out_features, slot.in_features)
        if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != wanted:
            raise BaseModelError(f"base model: {slot.path}: wanted a linear layer {wanted}, got {linear}")
        layer = _LoraLinear(linear, self.spec.scale)
        self._model.set_submodule(slot.path, layer)
        return layer

    @torch.inference_mode()
    def _check_head(self) -> None:
        ids = torch.arange(1, 9, device=self.device)[None]
        whole = self._model(input_ids=ids, use_cache=False).logits
        ours = self._head(self._inner(input_ids=ids, use_cache=False).last_hidden_state)
        if not torch.equal(whole, ours):
            raise BaseModelError("base model: wanted logits = head(hidden states), got scaled or capped logits")

    def _check_packing(self) -> None:
        def alone(ids: Sequence[int]) -> Tensor:
            logits: Tensor = self._model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0]
            return logits

        config, dtype = self._model.config, self._head.weight.dtype
        check_packing(
            config.model_type, config.get_text_config().vocab_size, longest_text(config), alone, self.log_probabilities,
            dtype,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the base's weights lie."""
        return torch.device(self._model.device)

    @property
    def max_tokens(self) -> int:
        """How many tokens the base reads at most."""
        return int(getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 1 << 31)

    def describe(self) -> str:
        """What rounds differently elsewhere: the base's dtype and device, and the threads."""
        on = str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        return f"{self._head.weight.dtype} on {on}, {torch.get_num_threads()} threads"

    @contextmanager
    def adapter(self, tensors: AdapterTensors | None) -> Iterator[list[nn.Parameter]]:
        """Within the block the model has this adapter (None: the base alone); outside of it, none.

        Yields the float32 master parameters, (A, B) of each slot in order; ``read`` gives their current values.

        Raises:
            BlobError: The adapter breaks the spec.
        """
        parameters: list[nn.Parameter] = []
        if tensors is not None:
            # The rank is read from one tensor; then every tensor must have it.
            first = tensors.get(self._slots[0].name_a)
            check_adapter(tensors, self.spec, self.spec.rank if first is None else first.shape[0])
            for slot, layer in zip(self._slots, self._layers, strict=True):
                # A copy: training must not write into the caller's arrays.
                layer.a = nn.Parameter(torch.tensor(tensors[slot.name_a], device=self.device))
                layer.b = nn.Parameter(torch.tensor(tensors[slot.name_b], device=self.device))
                parameters += [layer.a, layer.b]
        try:
            yield parameters
        finally:
            for layer in self._layers:
                layer.a = layer.b = None

    def read(self, parameters: Sequence[Tensor]) -> dict[str, NDArray[np.float32]]:
        """Copies of the current values of what ``adapter`` yielded."""
        names = [name for slot in self._slots for name in (slot.name_a, slot.name_b)]
        return {n: p.detach().cpu().numpy().copy() for n, p in zip(names, parameters, strict=True)}

    def summed_loss(self, batch: Batch) -> Tensor:
        """Nats, summed over the batch's supervised tokens; float64 scalar, differentiable in the adapter."""
        return summed_cross_entropy(self._hidden(batch), self._head.weight, self._head.bias, self._targets(batch))

    def log_probabilities(self, batch: Batch) -> Tensor:
        """(N,) float32 nats, the log-probability of each of the batch's targets; differentiable in the adapter."""
        return token_log_probabilities(self._hidden(batch), self._head.weight, self._head.bias, self._targets(batch))

    def summed_base_kl(self, batch: Batch) -> Tensor:
        """KL(adapted ‖ base), summed over the batch's supervised tokens; float64 scalar, differentiable."""
        with self._base_alone(), torch.no_grad():
            base = self._hidden(batch)
        return summed_base_kl(self._hidden(batch), base, self._head.weight, self._head.bias)

    @contextmanager
    def _base_alone(self) -> Iterator[None]:
        kept = [(layer.a, layer.b) for layer in self._layers]
        for layer in self._layers:
            layer.a = layer.b = None
        try:
            yield
        finally:
            for layer, (a, b) in zip(self._layers, kept, strict=True):
                layer.a, layer.b = a, b

    def _targets(self, batch: Batch) -> Tensor:
        return torch.from_numpy(batch.targets).to(self.device)

    def _hidden(self, batch: Batch) -> Tensor:
        """(N, H): the last hidden states from which the batch's targets are predicted."""
        device = self.device
        self.computed_tokens += batch.tokens
        found = self._reaches
        masks = (
            self._mask(found, batch)
            if isinstance(found, Reach)
            else {k: self._mask(r, batch) for k, r in found.items()}
        )
        hidden: Tensor = self._inner(
            input_ids=torch.from_numpy(batch.ids).to(device),
            position_ids=torch.from_numpy(batch.positions).to(device),
            attention_mask=masks,
            use_cache=False,
        ).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])[torch.from_numpy(batch.predictors).to(device)]

    def _mask(self, reach: Reach, batch: Batch) -> Tensor:
        """(R, 1, T, T), added to the attention scores."""
        allowed = torch.from_numpy(reach.allowed(batch)).to(self.device)
        dtype = self._head.weight.dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _keep_freed_memory() -> None:
    """Ask glibc to keep freed memory: giving megabytes back and faulting them in again costs a fifth of a CPU step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 25)  # the greatest that glibc takes
    mallopt(m_trim_threshold, (1 << 31) - 1)
