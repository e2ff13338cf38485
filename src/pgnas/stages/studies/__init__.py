"""The paper's tables as studies: the same run in several variants, each with several seeds."""

from pgnas.stages.studies.ablation import Ablation
from pgnas.stages.studies.counts import CandidateCounts
from pgnas.stages.studies.plan import Study
from pgnas.stages.studies.running import StudyResult, run_study
from pgnas.stages.studies.sweep import LengthScale, Temperature
from pgnas.stages.studies.weight_term import WeightTerm

__all__ = [
    "Ablation", "CandidateCounts", "LengthScale", "Study", "StudyResult", "Temperature", "WeightTerm", "run_study",
]  # fmt: skip
