"""The README's example of one attack runs as it stands, and its two commands come first."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_examples_run_in_their_order(capsys):
    names = {}
    for block in _blocks("python"):
        exec(block, names)
    assert names["perturbed"].shape == names["images"].shape
    assert "[" in capsys.readouterr().out


def test_the_first_two_commands_train_and_test():
    train, test = _blocks("bash")[:2]
    assert "launch/train.py --config configs/digits_spa.py" in train
    assert "-m pytest" in test
