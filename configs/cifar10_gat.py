"""Generalised adversarial training (GAT, Hsiung et al. 2023) of a PreActResNet-18 on CIFAR-10: five edits and noise.

    python launch/train.py --config configs/cifar10_gat.py --workdir runs/cifar10_gat --data_dir DIR

DIR holds `cifar10` as tensorflow-datasets prepares it. Training is against the composite attack with 7 steps for each
component, in an order drawn anew for each image and batch (the paper draws one a batch), on cross entropy; "trades" as
`outer` is the paper's other choice. The report compares the composite attack with the joint one, `spa`, the order of
either fixed, drawn and scheduled, at about the same number of passes.

For a GPU or a TPU. Not run to its end: no accelerator was at hand. An epoch costs 44 passes an image.
"""

from common import CAA_RANGES, cifar10, composite_attacks
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

RADIUS = 8 / 255


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` may set `epochs`, `outer` and `dtype`, as in `cifar10_gat.py:epochs=2,outer=trades`."""
    args = parse_arguments(arg, epochs=30.0, outer="cross_entropy", dtype="float32")
    composite = {"name": "caa", "radius": RADIUS, "attributes": CAA_RANGES}
    in_training = composite | {"order": "random", "num_steps": 7, "keep": "last"}
    return ConfigDict(
        {
            "name": "gat",
            **cifar10(args["epochs"], "preact_resnet18", args["dtype"]),
            "recipe": {"name": "adversarial", "outer": args["outer"], "attack": in_training},
            "schedule": {"name": "one_cycle", "peak": 0.2},
            "evaluation": {
                "batch_size": 512,
                "attacks": composite_attacks(RADIUS, CAA_RANGES)
                | {"PGD-20": {"name": "pgd", "radius": RADIUS, "num_steps": 20, "restarts": 2}},
                "selection_attack": composite | {"order": "random", "num_steps": 3},
            },
        }
    )
