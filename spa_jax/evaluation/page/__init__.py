"""Results as pages to look at, one file each: `report.html` of a run, `leaderboard.html` of several."""

from spa_jax.evaluation.page.report_html import report_page

__all__ = ["report_page"]
