"""Compare two models' next-token distributions without holding logits of all tokens.

The output matrices are read a piece of rows at a time, and a running sum is kept for every token:
the maximum, the sum of exponentials and what else the divergence needs, as in the online softmax
(Milakov and Gimelshein 2018).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: Tokens whose logits for one piece of the vocabulary are in memory at a time.
_TOKEN_BLOCK = 512


@dataclass(frozen=True)
class TokenFigures:
    """What is known of each predicted token; arrays of one length.

    Parameters
    ----------
    nll, other_nll : float64 array
        Negative log probability of the token that follows, in nats, by the original and the other.
    divergence : float64 array
        KL(original, other) of the two distributions, in nats.
    same_top : bool array
        Whether both hold the same token for the most probable.
    """

    nll: Doubles
    other_nll: Doubles
    divergence: Doubles
    same_top: npt.NDArray[np.bool_]


def compare_outputs(
    hidden: Floats,
    other_hidden: Floats,
    pieces: Iterable[tuple[int, Floats]],
    other_pieces: Iterable[tuple[int, Floats]],
    targets: npt.NDArray[np.integer],
) -> TokenFigures:
    """Compare the distributions of two models at the same positions.

    Parameters
    ----------
    hidden, other_hidden : float32 ``[tokens, hidden_size]``
        Inputs of the output matrices.
    pieces, other_pieces : iterables of (first row, rows)
        The output matrices, cut alike.
    targets : integers ``[tokens]``
        Ids of the tokens that follow.
    """
    original, other = _Running(len(hidden)), _Running(len(hidden))
    weighted = np.zeros(len(hidden), np.float64)
    for (begin, rows), (_, other_rows) in zip(pieces, other_pieces, strict=True):
        for first in range(0, len(hidden), _TOKEN_BLOCK):
            block = slice(first, first + _TOKEN_BLOCK)
            logits = hidden[block] @ rows.T
            other_logits = other_hidden[block] @ other_rows.T
            rescale, exponentials = original.add(block, logits, begin, targets[block])
            other.add(block, other_logits, begin, targets[block])
            weighted[block] *= rescale
            logits -= other_logits
            weighted[block] += np.einsum("tv,tv->t", exponentials, logits, dtype=np.float64)
    # KL = sum p (l - l') - (log Z - log Z'), with l = logits and Z = their normalizers
    divergence = weighted / original.sums - (original.log_normalizer - other.log_normalizer)
    return TokenFigures(
        nll=original.log_normalizer - original.target_logits,
        other_nll=other.log_normalizer - other.target_logits,
        divergence=np.maximum(divergence, 0.0),  # rounding only: it cannot be negative
        same_top=original.top == other.top,
    )


class _Running:
    """Running normalizer, most probable token and target's logit of every position."""

    def __init__(self, tokens: int) -> None:
        self.highest = np.full(tokens, -np.inf, np.float64)
        self.sums = np.zeros(tokens, np.float64)
        self.top = np.zeros(tokens, np.int64)
        self.target_logits = np.full(tokens, np.nan, np.float64)

    @property
    def log_normalizer(self) -> Doubles:
        """Logarithm of the sum of exponentials of all logits."""
        return self.highest + np.log(self.sums)

    def add(
        self, block: slice, logits: Floats, begin: int, targets: npt.NDArray[np.integer]
    ) -> tuple[Doubles, Floats]:
        """Add the logits of the tokens from `begin` on.

        Returns
        -------
        rescale : float64 array
            What sums of earlier pieces are multiplied with.
        exponentials : float32 ``[tokens, piece]``
            exp(logit - the highest so far).
        """
        top = logits.argmax(axis=1)
        found = logits[np.arange(len(logits)), top].astype(np.float64)
        before = self.highest[block]
        higher = found > before
        self.top[block] = np.where(higher, begin + top, self.top[block])
        highest = np.where(higher, found, before)
        rescale = np.exp(before - highest)
        exponentials: Floats = np.exp(logits - highest[:, None].astype(np.float32))
        self.sums[block] = self.sums[block] * rescale + exponentials.sum(axis=1, dtype=np.float64)
        self.highest[block] = highest
        here = np.flatnonzero((targets >= begin) & (targets < begin + logits.shape[1]))
        self.target_logits[block.start + here] = logits[here, targets[here] - begin]
        return rescale, exponentials
