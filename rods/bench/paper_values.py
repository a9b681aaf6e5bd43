"""What the RODS paper printed: its networks and seeds, Tables 1 and 2, and what its figures count.

Source: RODS paper, section 5, Table 1, Figures 3 to 5, Table 2 (appendix B.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rods.presets import PAPER_PRESETS

BATCH = 9  # images that one seed draws
STEPS = 40


@dataclass(frozen=True)
class Quality:
    """A row of Table 1 for one data set."""

    fid: float
    variance: float  # Inception-Var
    dreamsim: float


@dataclass(frozen=True)
class Correction:
    """A row of Table 2: percentages, and seconds on the paper's A100."""

    hallucinated: float
    corrected: float | None  # of the baseline's hallucinated images; None for the baseline
    broken: float | None  # newly hallucinated, of the others
    seconds: float


@dataclass(frozen=True)
class Detection:
    """What the curvature index found, and what CAS did, in images (Figures 3 to 5)."""

    images: int
    hallucinated: int
    detected: int
    better: int | None  # after CAS against before, by pairwise judgement, of all images; None: see Table 2
    worse: int


@dataclass(frozen=True)
class Study:
    """One data set of the paper."""

    name: str
    title: str
    kind: str  # of the labelling page
    preset: str
    seeds: range  # each draws a batch
    quality: Mapping[str, Quality]
    correction: Mapping[str, Correction]
    detection: Detection


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "ffhq", "FFHQ, 64x64", "faces", "edm-ffhq-64x64-uncond-ve", range(120),
            {"euler": Quality(20.48, 0.0669, 0.407), "heun": Quality(19.56, 0.0699, 0.422),
             "rods-cas": Quality(22.73, 0.0661, 0.400)},
            {}, Detection(1080, 40, 29, 9, 0),
        ),
        Study(
            "afhqv2", "AFHQv2, 64x64", "faces", "edm-afhqv2-64x64-uncond-ve", range(120),
            {"euler": Quality(13.36, 0.0539, 0.486), "heun": Quality(12.66, 0.0548, 0.488),
             "rods-cas": Quality(16.08, 0.0542, 0.481)},
            {}, Detection(1080, 8, 7, 10, 0),
        ),
        Study(
            "11k-hands", "11k-hands, 128x128", "hands", "hands-128-ve", range(100),
            {"euler": Quality(14.57, 0.0327, 0.1427), "heun": Quality(14.20, 0.0332, 0.1476),
             "rods-cas": Quality(16.68, 0.0318, 0.1509)},
            {"euler": Correction(19.4, None, None, 2.71), "heun": Correction(18.0, 17.7, 2.5, 5.38),
             "euler-200": Correction(16.9, 18.9, 1.4, 13.76), "rods-cas": Correction(14.3, 26.3, 0.0, 4.82)},
            Detection(900, 175, 169, None, 0),
        ),
    )
}  # fmt: skip


def study_of(network: str) -> Study:
    """The data set of a network by its name; 11k-hands, the one that the paper trained for itself, for all others."""
    return next((s for s in STUDIES.values() if PAPER_PRESETS[s.preset].network == network), STUDIES["11k-hands"])
