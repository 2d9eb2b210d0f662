"""What is told of a generation: records while it runs, the report, and the trace of every token.

Imports `tokenprune.ops`, `tokenprune.errors`. Start with `report.py`.
"""

from tokenprune.reports.report import Macs, Report, StepReport
from tokenprune.reports.trace import Trace, TraceStep

__all__ = ["Macs", "Report", "StepReport", "Trace", "TraceStep"]
