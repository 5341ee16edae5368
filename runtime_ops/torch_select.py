"""Choosing the largest of a row, and products with the few chosen columns, in plain torch."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def softmax_(x: Tensor) -> Tensor:
    """Return softmax over the last axis, 0 in rows that are all -inf; in the memory of `x`."""
    peak = x.amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)
    x.sub_(peak).exp_()
    return x.div_(x.sum(-1, keepdim=True).clamp_(min=1.0))


def best(x: Tensor, count: int) -> Tensor:
    """Return where the `count` largest of the last axis are, in no order.

    The largest lie in the `count` best of the columns' maxima, columns of four; so most are never looked at twice.
    """
    fold, length = 4, x.shape[-1]
    if length < 2 * fold * count:
        return x.topk(count, sorted=False).indices
    step = length // fold
    whole = x[..., : fold * step].unflatten(-1, (fold, step))
    columns = best(whole.amax(-2), count)
    places = [columns + i * step for i in range(fold)]
    rest = torch.arange(fold * step, length, device=x.device).expand(*x.shape[:-1], -1)
    candidates = torch.cat([*places, rest], dim=-1)
    return candidates.gather(-1, x.gather(-1, candidates).topk(count, sorted=False).indices)


class Lookup:
    """A sparse matrix [b g rows t], given by k columns in every row; embedding bags do its products without copies.

    Args:
        columns: [b g rows k]; the weights of those below 0 must be 0.
        width: t.
    """

    def __init__(self, columns: Tensor, width: int) -> None:
        self.heads, self.k = columns.shape[:2], columns.shape[3]
        tables = columns.shape[0] * columns.shape[1]
        kind = torch.int32 if tables * max(width, columns.numel()) < 1 << 31 else torch.int64
        shift = torch.arange(tables, dtype=kind, device=columns.device) * width
        flat = columns.flatten(0, 1).clamp(min=0).to(kind) + shift[:, None, None]
        self.flat, self.rows = flat.reshape(-1), flat.shape[0] * flat.shape[1]
        self.starts = torch.arange(0, self.rows * self.k, self.k, dtype=kind, device=columns.device)
        self.row_of = torch.arange(self.rows, dtype=kind, device=columns.device).repeat_interleave(self.k)

    def mix(self, table: Tensor, weights: Tensor) -> Tensor:
        """Return weights [b g rows k] times the rows of `table` [b g t d] that are named: [b g rows d]."""
        flat = weights.reshape(-1, self.k)
        names = self.flat.view(-1, self.k)
        look_up = torch.nn.functional.embedding_bag
        bags = look_up(names, table.flatten(0, 2), per_sample_weights=flat, mode="sum")
        result: Tensor = bags.unflatten(0, (*self.heads, -1))
        return result

    def dots(self, rows: Tensor, table: Tensor) -> Tensor:
        """Return the products of `rows` [b g rows d] with the named rows of `table` [b g t d]: [b g rows k]."""
        flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows.flatten(0, 2), table.flatten(0, 2), self.flat, self.starts, self.row_of, 0, -1
        )
        result: Tensor = flat.view(*self.heads, -1, self.k)
        return result

    def spread(self, rows: Tensor, weights: Tensor, width: int) -> Tensor:
        """Return the transposed product, weights [b g rows k] of `rows` [b g rows d] added up per name: [b g t d]."""
        count = torch.full_like(self.starts, self.k)
        tables = self.heads[0] * self.heads[1]
        flat = torch.ops.aten._embedding_bag_dense_backward(
            rows.flatten(0, 2), self.flat, self.row_of, count, count[:0], tables * width, False, 0,
            weights.reshape(-1), -1,
        )  # fmt: skip
        result: Tensor = flat.unflatten(0, (*self.heads, width))
        return result
