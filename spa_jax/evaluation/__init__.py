"""Evaluation of classifiers: accuracy, sanity checks, curves, pictures and the report."""

from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.card import PartRecord, RobustnessCard
from spa_jax.evaluation.cascade import autoattack
from spa_jax.evaluation.changes import attack_distances, edited_images
from spa_jax.evaluation.curves import accuracy_by_attribute, accuracy_by_radius, robustness_curve
from spa_jax.evaluation.description import describe
from spa_jax.evaluation.entries import Entry, Reader, read_entries
from spa_jax.evaluation.gallery import Gallery, Sighting
from spa_jax.evaluation.histograms import histograms_png
from spa_jax.evaluation.manipulation import ManipulationReport, evaluate_manipulator
from spa_jax.evaluation.manipulation_report import sweep_png, write_manipulation_report
from spa_jax.evaluation.page import report_page
from spa_jax.evaluation.page.leaderboard import leaderboard_page, write_leaderboard
from spa_jax.evaluation.pictures import Sheet, SheetRow, curves_png, make_sheet, sheet_png
from spa_jax.evaluation.records import (
    AttackRecord,
    AttributeValues,
    Check,
    Curve,
    Distance,
    Mean,
    ModelReport,
    Nearest,
    OverDraws,
    Proportion,
)
from spa_jax.evaluation.report import read_report, write_report
from spa_jax.evaluation.sanity import sanity_checks
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.evaluation.training_examples import TrainingExamplesRecord, measure_training_examples, sharedness
from spa_jax.evaluation.training_examples_report import write_training_examples_report
from spa_jax.evaluation.universal import (
    UniversalRecord,
    boundary_points,
    clean_answers,
    craft,
    evaluate_universal,
    measure_transfer,
    measure_universal,
    worst_record,
)
from spa_jax.evaluation.universal_report import universal_png, write_universal_report

__all__ = [
    "AttackRecord",
    "AttributeValues",
    "Check",
    "Curve",
    "Distance",
    "Entry",
    "Gallery",
    "ManipulationReport",
    "Mean",
    "ModelReport",
    "Nearest",
    "OverDraws",
    "PartRecord",
    "Proportion",
    "Reader",
    "RobustnessCard",
    "Sheet",
    "SheetRow",
    "Sighting",
    "TrainingExamplesRecord",
    "UniversalRecord",
    "accuracy_by_attribute",
    "accuracy_by_radius",
    "attack_distances",
    "autoattack",
    "boundary_points",
    "clean_answers",
    "craft",
    "curves_png",
    "describe",
    "edited_images",
    "evaluate",
    "evaluate_manipulator",
    "evaluate_universal",
    "evenly_spaced",
    "histograms_png",
    "leaderboard_page",
    "make_sheet",
    "measure_training_examples",
    "measure_transfer",
    "measure_universal",
    "read_entries",
    "read_report",
    "report_page",
    "robustness_curve",
    "sanity_checks",
    "sharedness",
    "sheet_png",
    "sweep_png",
    "universal_png",
    "worst_record",
    "write_leaderboard",
    "write_manipulation_report",
    "write_report",
    "write_training_examples_report",
    "write_universal_report",
]
