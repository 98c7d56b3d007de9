"""The HTML report of an analysis: one file that needs no network and no server."""

from mpfast.models.html_report.page import html_report

__all__ = ["html_report"]
