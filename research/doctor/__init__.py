"""The invariants that every run rests on, examined on the actual settings and devices."""

from research.doctor.findings import Finding, Report
from research.doctor.suite import LAWS, NAMES, examine

__all__ = ["LAWS", "NAMES", "Finding", "Report", "examine"]
