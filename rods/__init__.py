"""Robust Optimization-inspired Diffusion Sampler: samplers, detectors and correctors on any denoiser D(x; sigma)."""

from rods.asced import Asced, Jump
from rods.base_samplers import Ablation, Edm, Euler, Sampler
from rods.combinators import Chain, Every, Gate, Within
from rods.correctors import Cas, Iq, IqThrough, Laplacian, Overshoot, RandomShift, Sas, SgPrev, SigmaOffset, Tag
from rods.costly_detectors import LambdaMax, Lmi
from rods.denoiser import BoundDenoiser, bind
from rods.densities import Mixture, finite_dataset, gaussian
from rods.detectors import CurvatureIndex, Detector, Lid, StepDetector, curvature_index
from rods.gate import Readout
from rods.guidance import Guided, guided
from rods.restart import Restart, restart_sampler
from rods.samplers import Corrected, RodsCas, RodsSas, edm_sampler, euler_sampler, rods_sampler
from rods.schedules import SigmaWindow, Window, in_window
from rods.state import State
from rods.trajectory import Churn, Correction, Corrector, trajectory
from rods.types import Denoiser, RestartRecord, RodsResult, SampleRecord, Step, Steps
from rods.variance import Tvf

__all__ = [
    "Ablation",
    "Asced",
    "BoundDenoiser",
    "Cas",
    "Chain",
    "Churn",
    "Corrected",
    "Correction",
    "Corrector",
    "CurvatureIndex",
    "Denoiser",
    "Detector",
    "Edm",
    "Euler",
    "Every",
    "Gate",
    "Guided",
    "Iq",
    "IqThrough",
    "Jump",
    "LambdaMax",
    "Laplacian",
    "Lid",
    "Lmi",
    "Mixture",
    "Overshoot",
    "RandomShift",
    "Readout",
    "Restart",
    "RestartRecord",
    "RodsCas",
    "RodsResult",
    "RodsSas",
    "SampleRecord",
    "Sampler",
    "Sas",
    "SgPrev",
    "SigmaOffset",
    "SigmaWindow",
    "State",
    "Step",
    "StepDetector",
    "Steps",
    "Tag",
    "Tvf",
    "Window",
    "Within",
    "bind",
    "curvature_index",
    "edm_sampler",
    "euler_sampler",
    "finite_dataset",
    "gaussian",
    "guided",
    "in_window",
    "restart_sampler",
    "rods_sampler",
    "trajectory",
]
