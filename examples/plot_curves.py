"""Read the fields of packed groups with GROUP_DTYPE, and plot the curves that were stored.

Left: the sixteen levels of some curves; a curve bends the levels toward zero (c > 0) or away from
it (c < 0). Right: how often each curve is stored for weights of three distributions.

Needs the extra [plot]. From the top of the repository:

    pip install ".[plot]"
    python examples/plot_curves.py curves.png
"""

import sys

import matplotlib as mpl

mpl.use("Agg")  # draws to a file, without a display

import matplotlib.pyplot as plt
import numpy as np

from q43nl_numba import GROUP_BYTES, GROUP_DTYPE, dequantize, q43nl

GROUPS = 8192
SHOWN = (-127, -64, 0, 64, 127)


def levels(curve: int) -> np.ndarray:
    """Return the levels of codes -8 to 7 for a stored curve and scale 1, as float32[16]."""
    group = np.zeros(1, GROUP_DTYPE)
    group["scale"] = 1
    group["curve"] = curve
    nibbles = np.arange(16, dtype=np.uint8)
    group["codes"][0, :8] = nibbles[0::2] | nibbles[1::2] << 4  # weight 2i in the low half
    return dequantize(group.view(np.uint8))[:16]


rng = np.random.default_rng(0)
shape = (GROUPS, 32)
samples = {
    "uniform": rng.uniform(-1, 1, shape),
    "normal": rng.standard_normal(shape),
    "Student's t, 3": rng.standard_t(3, shape),
}

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for curve in SHOWN:
    left.plot(np.arange(-8, 8), levels(curve), marker=".", label=f"curve {curve}")
left.set(xlabel="code", ylabel="level, in units of the scale", title="levels of a curve")
left.legend()

for name, weights in samples.items():
    fields = q43nl(weights, "optimal").view(GROUP_DTYPE)
    right.hist(fields["curve"], bins=np.arange(-128, 129, 8), histtype="step", label=name)
    print(
        f"{name}: {fields.size} groups of {GROUP_BYTES} bytes, "
        f"mean curve {fields['curve'].mean():.1f}, mean |scale| {abs(fields['scale']).mean():.3f}"
    )
right.set(xlabel="stored curve", ylabel="groups", title=f"curves of {GROUPS} groups")
right.legend()

figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "curves.png", dpi=120)
