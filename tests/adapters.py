"""Adapters to resize, and their updates by full decompositions."""

from __future__ import annotations

import hashlib

import numpy as np

# Factors in float32: each of the two is off by half a unit per entry, and so is their product, relative to its norm.
ROUNDING = 2.0**-22


def falling(rows, columns, rank, seed=0):
    """Factors (A, B) in float32 of a product whose singular values fall, the faster the larger the seed."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, rank)))[0]
    mixed = rng.standard_normal((rank, rank)) + 3 * np.eye(rank)
    values = (0.85 - 0.15 * seed) ** np.arange(rank)
    return (mixed @ right.T).astype(np.float32), (left * values @ np.linalg.inv(mixed)).astype(np.float32)


def product(A, B):
    A, B = A.astype(np.float64), B.astype(np.float64)
    return B.reshape(len(B), -1) @ A.reshape(len(A), -1)


def truncated(W, rank):
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def tree(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


def diffusers(*ranks):
    model = {}
    for number, rank in enumerate(ranks):
        A, B = falling(40, 48, rank, seed=number)
        model |= {f"transformer.b.{number}.q.lora_A.weight": A, f"transformer.b.{number}.q.lora_B.weight": B}
    return model
