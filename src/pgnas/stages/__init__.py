"""The stages of a run, from the posterior to the report."""

from pgnas.stages.inspecting import inspect
from pgnas.stages.network_file import load
from pgnas.stages.pipeline import STAGES, run, run_stage, run_values
from pgnas.stages.result import RunResult
from pgnas.stages.search_api import SearchResult, search

__all__ = ["STAGES", "RunResult", "SearchResult", "inspect", "load", "run", "run_stage", "run_values", "search"]
