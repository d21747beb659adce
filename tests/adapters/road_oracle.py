"""RoAd in numpy float64, written from the paper (arXiv 2409.00119): whole matrices, block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def block(variant: str, alpha: Matrix, theta: Matrix) -> Matrix:
    """One 2x2 block, eq. 2, of its 1, 2 or 4 alphas and as many thetas (four: 11, 22, 12, 21)."""
    if variant == "road_1":
        a11 = a12 = a21 = a22 = alpha[0]
        t11 = t12 = t21 = t22 = theta[0]
    elif variant == "road_2":  # shared within a row
        a11 = a12 = alpha[0]
        a21 = a22 = alpha[1]
        t11 = t12 = theta[0]
        t21 = t22 = theta[1]
    else:
        a11, a22, a12, a21 = alpha
        t11, t22, t12, t21 = theta
    return np.array([[a11 * np.cos(t11), -a12 * np.sin(t12)], [a21 * np.sin(t21), a22 * np.cos(t22)]])


def matrix(variant: str, alpha: Matrix, theta: Matrix) -> Matrix:
    """R, (S, S), of the values of S / 2 blocks one after another."""
    each = {"road_1": 1, "road_2": 2, "road_4": 4}[variant]
    num_blocks = len(alpha) // each
    R = np.zeros((2 * num_blocks, 2 * num_blocks))
    for i in range(num_blocks):
        values = slice(each * i, each * (i + 1))
        R[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block(variant, alpha[values], theta[values])
    return R
