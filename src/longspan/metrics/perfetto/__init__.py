"""An event log as a trace for Perfetto (ui.perfetto.dev) or Chrome: what `longspan export-trace` writes."""

from longspan.metrics.perfetto.export import export_trace

__all__ = ["export_trace"]
