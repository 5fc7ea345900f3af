"""Multi-head attention with fewer heads: torch's own asserts that its width is its inputs'."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ModelError


class PrunedAttention(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` after heads or input channels have gone: same parameters by name,
    same call, same results; widths are read from the weights. Made by
    ``become_pruned_attention``, not built."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ModelError("is_causal is a hint about attn_mask; give that too")
        if query.is_nested:
            if not self.batch_first or key_padding_mask is not None or attn_mask is not None:
                raise ModelError("nested tensors go with batch_first=True and without masks, as in torch")
            return self._nested(query, key, value, need_weights, average_attn_weights)
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        # As in the parent, the hint takes the mask's place where nothing else needs one.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q)
        k, v = self._lengthened(k, self.bias_k), self._lengthened(v, self.bias_v)
        if mask is not None:  # every query sees what was added
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
            weights = None
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights

    def _nested(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within sequences of several lengths, as ``nn.TransformerEncoder`` makes them of padded ones
        for torch's fused layers."""
        layout = query.layout
        lengths, keys = ([len(row) for row in x.unbind()] for x in (query, key))
        query, key, value = (torch.nested.to_padded_tensor(x, 0.0) for x in (query, key, value))
        ends = torch.tensor(keys, device=query.device)[:, None]
        padding = torch.arange(max(keys), device=query.device) >= ends
        out, weights = self.forward(
            query, key, value, padding, need_weights, average_attn_weights=average_attn_weights
        )
        rows = [row[:length] for row, length in zip(out, lengths, strict=True)]
        return torch.nested.as_nested_tensor(rows, layout=layout), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        projected = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected]

    def _lengthened(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Add the keys (or values) that are parameters, and zeros, behind those of the input."""
        if bias is not None:
            own = bias.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            x = torch.cat([x, own.expand(len(x), -1, -1, -1)], 2)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Join the two masks into one that is added to the scores."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            mask = mask.view(q.shape[0], -1, *mask.shape[1:]) if mask.dim() == 3 else mask
            if mask.dim() == 4 and mask.shape[1] != self.num_heads:
                raise ModelError(
                    f"attn_mask has {mask.shape[1]} heads and {self.num_heads} are left after pruning; "
                    "give one mask for all heads"
                )
        if padding is not None:
            extra = _additive(padding, q.dtype)[:, None, None, :]
            mask = extra if mask is None else mask + extra
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)


def become_pruned_attention(module: nn.MultiheadAttention) -> None:
    """Turn a module whose tensors have been cut into a ``PrunedAttention``, in place."""
    inner = module.out_proj.weight.shape[1]
    module.__class__ = PrunedAttention
    module.num_heads = inner // module.head_dim
    module.embed_dim = module.out_proj.weight.shape[0]
    # torch's fused layers look at this one, and leave modules alone that say no.
    module._qkv_same_embed_dim = False
