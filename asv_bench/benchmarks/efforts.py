"""What each effort of `optimal` gives: error beside the exact optimum, and time."""

import q43nl_numba

from .common import draw, normal
from .quality import finite

EFFORTS = list(range(1, 10))
CHOSEN = ["normal", "laplace", "student-t", "uniform", "sparse"]
JUDGED = 512 * 32  # exact takes seconds for more


def skip_older_commits():
    if "optimal" not in q43nl_numba.METHODS:
        raise NotImplementedError("this commit has no method optimal")


def mse(weights, method, **options):
    return q43nl_numba.quality(weights, q43nl_numba.q43nl(weights, method, **options)).mse


class Closeness:
    params = (EFFORTS, CHOSEN)
    param_names = ("effort", "distribution")

    def setup_cache(self):
        """Everything in one process: loading the kernels takes longer than running them."""
        if "optimal" not in q43nl_numba.METHODS:
            return {}
        ratios = {}
        for distribution in CHOSEN:
            weights = draw(distribution, JUDGED)
            optimum = mse(weights, "exact")
            for effort in EFFORTS:
                found = mse(weights, "optimal", effort=effort)
                ratios[effort, distribution] = finite(found / optimum)
        return ratios

    def setup(self, ratios, effort, distribution):
        skip_older_commits()

    def track_ratio_to_exact(self, ratios, effort, distribution):
        return ratios[effort, distribution]

    track_ratio_to_exact.unit = "MSE / MSE of exact"


class Time:
    params = EFFORTS
    param_names = ("effort",)

    def setup(self, effort):
        skip_older_commits()
        self.weights = normal(131_072)
        self.time_quantize(effort)

    def time_quantize(self, effort):
        q43nl_numba.q43nl(self.weights, "optimal", effort=effort)
