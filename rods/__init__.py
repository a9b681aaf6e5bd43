"""Robust Optimization-inspired Diffusion Sampler: samplers, detectors and correctors on any denoiser D(x; sigma)."""

from rods.combined_scores import Learned, Screened, Term
from rods.correctors import (
    Correction,
    Corrector,
    SigmaWindow,
    Window,
    cas,
    chain,
    gate,
    in_window,
    overshoot,
    random_shift,
    sas,
    tag,
    within,
)
from rods.densities import Mixture, finite_dataset, gaussian
from rods.detectors import Detector, curvature_index, h_index, lambda_max
from rods.evaluation import BoundDenoiser, Point, bind
from rods.image_scores import HIndex, LambdaMax, Lid, Lmi, Score, Tvf
from rods.iq import iq, iq_sampler
from rods.laplacian import laplacian, laplacian_sampler
from rods.restart import ImageScore, gated_restart, restart_sampler
from rods.samplers import (
    ablation_sampler,
    edm_sampler,
    euler_sampler,
    overshoot_sampler,
    random_sampler,
    rods_sampler,
    sigma_offset_sampler,
    tag_sampler,
)
from rods.score_text import format_score, parse_score
from rods.scores import TrajectoryVariance, lid, lid_gradient, tvf
from rods.trajectory import Churn, trajectory
from rods.types import Denoiser, RestartRecord, RodsResult, SampleRecord, Step

__all__ = [
    "BoundDenoiser",
    "Churn",
    "Correction",
    "Corrector",
    "Denoiser",
    "Detector",
    "HIndex",
    "ImageScore",
    "LambdaMax",
    "Learned",
    "Lid",
    "Lmi",
    "Mixture",
    "Point",
    "RestartRecord",
    "RodsResult",
    "SampleRecord",
    "Score",
    "Screened",
    "SigmaWindow",
    "Step",
    "Term",
    "TrajectoryVariance",
    "Tvf",
    "Window",
    "ablation_sampler",
    "bind",
    "cas",
    "chain",
    "curvature_index",
    "edm_sampler",
    "euler_sampler",
    "finite_dataset",
    "format_score",
    "gate",
    "gated_restart",
    "gaussian",
    "h_index",
    "in_window",
    "iq",
    "iq_sampler",
    "lambda_max",
    "laplacian",
    "laplacian_sampler",
    "lid",
    "lid_gradient",
    "overshoot",
    "overshoot_sampler",
    "parse_score",
    "random_sampler",
    "random_shift",
    "restart_sampler",
    "rods_sampler",
    "sas",
    "sigma_offset_sampler",
    "tag",
    "tag_sampler",
    "trajectory",
    "tvf",
    "within",
]
