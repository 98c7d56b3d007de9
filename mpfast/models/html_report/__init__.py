"""Results as pages of their own: one HTML file each, that needs no network and no server."""

from mpfast.models.html_report.analysed import analysis_page
from mpfast.models.html_report.compared import comparison_page

__all__ = ["analysis_page", "comparison_page"]
