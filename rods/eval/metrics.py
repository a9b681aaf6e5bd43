"""Metrics by name: what each needs, what it is called, and what it must not be printed without.

docs/how-to/metrics.md has the formulas and their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dnnlib.errors import UserError
from rods.eval.diversity import cosine_diversity, inception_var
from rods.eval.extraction import FeatureSet
from rods.eval.features import Extractor
from rods.eval.frechet import frechet_distance
from rods.eval.kernel import kid, subset_kid
from rods.eval.neighbours import K_COVERAGE, K_PRECISION, coverage, precision, recall
from rods.eval.reference import Reference
from rods.eval.statistics import feature_statistics

METRICS = {
    "fid": "Fréchet distance to the reference; kid comes with it",
    "kid": "kernel distance to the reference",
    "inception-var": "trace of the feature covariance / dimension",
    "cosine": "mean pairwise 1 - cosine of the features",
    "dreamsim": "the same of DreamSim's features (the extra dreamsim)",
    "precision": "share of images near a reference image",
    "recall": "share of reference images near an image",
    "coverage": "share of reference images with an image among their neighbours",
}
NEIGHBOURS = {
    "precision": (precision, K_PRECISION),
    "recall": (recall, K_PRECISION),
    "coverage": (coverage, K_COVERAGE),
}
NEED_FEATURES = ("kid", *NEIGHBOURS)  # of the reference, not its mean and covariance alone
NEED_REFERENCE = ("fid", *NEED_FEATURES)
FEW, ENOUGH = 2048, 10_000


@dataclass(frozen=True)
class Result:
    """A number with what it cannot be read without."""

    metric: str
    label: str
    value: float | None  # None where these images have none, see `undefined`
    n: int
    n_ref: int | None = None  # None where there is no reference, or it does not say
    sd: float | None = None  # over subsets
    mean: float | None = None
    subset_size: int | None = None
    subsets: int | None = None
    k: int | None = None  # neighbours
    undefined: str | None = None  # why there is no value

    def describe(self) -> str:
        """One line: name, value, n."""
        if self.value is None:
            return f"{self.label:<26} not defined for these images: {self.undefined}"
        line = f"{self.label:<26} {self.value:<12.6g} n = {self.n}"
        if self.metric in NEED_REFERENCE:
            line += f" against {self.n_ref or 'an unknown number'}"
        if self.sd is not None:
            line += f"; {self.mean:.4g} +- {self.sd:.2g} over {self.subsets} subsets of {self.subset_size}"
        if self.k is not None:
            line += f"; k = {self.k}"
        return line


def parse_metrics(text: str) -> list[str]:
    """`fid,kid` -> names, in the order of `METRICS`; fid brings kid. Raises UserError for an unknown name."""
    given = [part.strip() for part in text.split(",")]
    if unknown := [name for name in given if name not in METRICS]:
        raise UserError(f"--metrics={text}: {unknown[0]!r} is unknown; use some of {','.join(METRICS)}")
    wanted = {*given, *(["kid"] if "fid" in given else [])}
    return [name for name in METRICS if name in wanted]


def measure(
    names: Sequence[str], found: FeatureSet, extractors: Sequence[Extractor], reference: Reference | None
) -> list[Result]:
    """The metrics `names` of a feature set. `extractors` are those of the set: the main one, then DreamSim's if wanted.

    kid is left out where the reference keeps no features, which precision, recall and coverage need. A metric that
    these images do not have (black ones have no direction, few ones no neighbours) says why in place of its value.
    Raises ValueError for fewer than two images.
    """
    x, extractor, n = found.features[0], extractors[0], found.n
    results = []
    statistics = feature_statistics(x)
    for name in names:
        if name == "fid":
            assert reference is not None
            value = frechet_distance(statistics.mean, statistics.cov, reference.mu, reference.sigma)
            results.append(Result(name, extractor.frechet_name, value, n, reference.n))
        elif name == "kid" and reference is not None and reference.features is not None:
            y, subset = reference.features, None
            if min(n, len(y)) >= 4:
                subset = subset_kid(x, y)
            results.append(
                Result(
                    name, extractor.kernel_name, kid(x, y), n, len(y),
                    *((subset.sd, subset.mean, subset.size, subset.subsets) if subset else ()),
                )
            )  # fmt: skip
        elif name == "inception-var":
            results.append(Result(name, extractor.variance_name, inception_var(statistics.cov), n))
        elif name == "cosine":
            label = f"Cosine-{extractor.suffix or 'Inception'}"
            results.append(_if_defined(name, label, partial(cosine_diversity, x), n))
        elif name == "dreamsim":
            results.append(_if_defined(name, "DreamSim diversity", partial(cosine_diversity, found.features[1]), n))
        elif name in NEIGHBOURS:
            assert reference is not None
            assert reference.features is not None
            (share, k), y = NEIGHBOURS[name], reference.features
            label = f"{name.capitalize()}-{extractor.suffix or 'Inception'}"
            results.append(_if_defined(name, label, partial(share, x, y, k=k), n, len(y), k=k))
    return results


def _if_defined(
    name: str, label: str, compute: Callable[[], float], n: int, n_ref: int | None = None, *, k: int | None = None
) -> Result:
    try:
        return Result(name, label, compute(), n, n_ref, k=k)
    except ValueError as e:
        return Result(name, label, None, n, n_ref, k=k, undefined=str(e).split(": ", 1)[-1])


def reference_warnings(
    names: Sequence[str], reference: Reference | None, extractor: Extractor, *, where: str, force: bool
) -> list[str]:
    """Warnings about a reference that stands beside this extractor's features; `where` is what names it.

    Raises UserError where the two cannot be compared, or not without `force`.
    """
    if reference is None:
        return []
    warnings = []
    if mismatch := reference.mismatch(extractor):
        if not force or len(reference.mu) != extractor.dim:
            remedy = "" if len(reference.mu) != extractor.dim else ", or compare all the same with --force"
            raise UserError(f"{where} {mismatch}; use the same --detector and --resize for both{remedy}")
        warnings.append(f"{where} {mismatch}: the distance mixes two ways of making features")
    if reference.detector is None:
        warnings.append(f"{where} does not say what made it; EDM's references are of the Inception, --resize=tf1")
    if reference.features is None and (lacking := [name for name in names if name in NEED_FEATURES]):
        if lacking != ["kid"] or "fid" not in names:
            raise UserError(f"{where} keeps no features, which {lacking[-1]} needs; make it with fid.py ref")
        warnings.append(f"{where} keeps no features, so there is no kernel distance; fid.py ref keeps some")
    return warnings


def size_warnings(names: Sequence[str], n: int | None, n_ref: int | None) -> list[str]:
    """What to say about small samples: they move the Fréchet distance and the neighbours, and no other metric's mean.

    None for a number that is unknown, or of no concern.
    """
    warnings = []
    if n is not None and n < ENOUGH and (shares := [name for name in names if name in NEIGHBOURS]):
        warnings.append(
            f"{', '.join(shares)}: balls of k neighbours shrink with the number of images; compare equal numbers only"
        )
    if "fid" not in names:
        return warnings
    for count, what in ((n, "images"), (n_ref, "reference images")):
        if count is None:
            continue
        if count < FEW:
            warnings.append(
                f"{count} {what} are fewer than {FEW}: the covariance is poorly known and the Fréchet distance far too "
                "high; compare it only at equal numbers, and read the kernel distance"
            )
        elif count < ENOUGH:
            warnings.append(
                f"{count} {what} are fewer than {ENOUGH}: the Fréchet distance is biased upwards; "
                "compare it only at equal numbers"
            )
    return warnings
