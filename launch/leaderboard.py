"""Compare the models of several runs on one page, for each data set and threat model a table that sorts.

python launch/leaderboard.py --result runs/digits_spa/report/report.json --result runs/digits_pgd/report/report.json \
    --output runs/leaderboard.html

It reads results only: nothing is attacked, and neither the data nor the checkpoints are needed.
"""

from absl import flags

from spa_jax.evaluation.page.leaderboard import write_leaderboard
from spa_jax.runs import launching

RESULT = flags.DEFINE_multi_string(
    "result", None, "A report.json, or a card.json of AutoAttack; repeat it for each.", required=True
)
OUTPUT = launching.define_path("output", "leaderboard.html", "The page to write.")
TITLE = flags.DEFINE_string("title", "Leaderboard", "Its title.")


def main() -> None:
    """Read, compare, write."""
    entries = write_leaderboard(RESULT.value, OUTPUT.value, title=TITLE.value)
    print(f"{OUTPUT.value}: {len(entries)} entries from {len(RESULT.value)} files")


if __name__ == "__main__":
    launching.launch(main, needs_config=False)
