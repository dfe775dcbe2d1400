"""The mistake of a clip over sharded weights: each process takes the norm of its own shard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipbench.trees import Tree


class Sharded:
    """A clip that each of ``ranks`` processes applies to its own shard of the gradient, as if that
    was the whole.

    A tensor is sharded along its first dimension, as FSDP2 does it: into pieces of
    ⌈rows / ranks⌉ rows, the last ones smaller or empty. A scalar lies on the first process.

    **Source**: torch.distributed.fsdp.fully_shard, whose own norm is that of all shards.
    """

    def __init__(self, clip: Any, ranks: int) -> None:
        self.clip, self.ranks = clip, ranks

    def update(self, grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        """The clipped shards, put together; the state as it was."""
        shards = [shard for rank in range(self.ranks) if (shard := self._shard(grads, rank))]
        clipped = [
            self.clip.update(shard, {}, self._shard(params, rank))[0]
            for rank, shard in enumerate(shards)
        ]
        return {
            name: torch.cat([one[name] for one in clipped if name in one])
            if grad.ndim
            else clipped[0][name]
            for name, grad in grads.items()
        }, state

    def _shard(self, tree: Tree, rank: int) -> Tree:
        """What lies on one process; tensors with no row there are left out."""
        found: dict[str, Tensor] = {}
        for name, leaf in tree.items():
            if not leaf.ndim:
                if rank == 0:
                    found[name] = leaf
            elif rank < len(pieces := leaf.chunk(self.ranks)):
                found[name] = pieces[rank]
        return found
