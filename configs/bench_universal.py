"""Universal perturbations beside a PyTorch loop and ART: what they fool on MNIST images held out, and their speed.

python launch/benchmark.py --config configs/bench_universal.py --workdir runs/bench_universal --data_dir DIR

DIR holds `mnist` as tensorflow-datasets prepares it; `bench_universal.py:dataset=digits` needs none. `parts=speed` and
`parts=strength` make one of the two tables; `peers=` does without PyTorch, else needs the `bench` extra.

Seen with `parts=strength,crafting=500,epochs=3,images=1000`, mean of seeds 0, 1, 2: `uap` leaves 83.2 % (fooling ratio
16.4 %) and the PyTorch loop 83.1 % (16.4 %) after 1,500 passes each. With `parts=speed,timed=1280,repeats=1` on two
quiet cores an epoch of `uap` took 0.98 floors on one device (4,871 images a second), the PyTorch loop 1.2 times and ART
268 times as long. With `parts=strength,crafting=200,epochs=5,images=1000,seeds=0` `uap` leaves 89.4 % after 1,000
passes (83.1 % after 8,000, with `epochs=40`), and ART's perturbation 96.3 % after 255,253.
"""

from common import small_network
from ml_collections import ConfigDict

from spa_jax.configuration import parse_arguments

PEERS = ("torch_loop_uap", "art_universal")
VICTIMS = {"mnist": {"num_epochs": 1.0, "radius": 0.2}, "digits": {"num_epochs": 20.0, "radius": 0.2}}


def get_config(arg: str | None = None) -> ConfigDict:
    """The benchmark; `arg` may set these, as in `bench_universal.py:parts=speed,repeats=5,devices=1`.

    `crafting` images are gone through `epochs` times, `images` of the test split judge; `batch` is that of crafting,
    and `timed` images are one epoch of the timing.
    """
    args = parse_arguments(
        arg,
        parts=("speed", "strength"),
        dataset="mnist",
        crafting=500,
        epochs=5,
        images=2000,
        batch=50,
        seeds=(0, 1, 2),
        target=0,
        peers=PEERS,
        timed=1280,
        repeats=3,
        devices=(1, 2),
    )
    peers = tuple(filter(None, args["peers"]))
    targeted = {"peers": (), "target": args["target"]}
    universal = {
        "model": small_network(),
        "batch_size": 128,
        "learning_rate": 3e-3,
        "victims": {"standard": {"recipe": {"name": "standard"}, **VICTIMS[args["dataset"]]}},
        "crafting_images": args["crafting"],
        "crafting_batch": args["batch"],
        "num_epochs": args["epochs"],
        "num_images": args["images"],
        "seeds": args["seeds"],
        "attacks": {
            "uap": {"attack": {"name": "uap"}, "peers": peers, "target": None},
            "deepfool_uap": {"attack": {"name": "deepfool_uap", "success_share": 1.0}, "peers": (), "target": None},
            "targeted uap": {"attack": {"name": "uap", "loss": "cross_entropy"}, **targeted},
            "targeted deepfool_uap": {"attack": {"name": "deepfool_uap", "success_share": 1.0}, **targeted},
        },
    }
    speed = {
        "networks": {"cnn": {"model": {"name": "small_cnn", "convs_per_stage": 1}, "input_shape": (28, 28, 1)}},
        "num_classes": 10,
        "batch_size": 128,
        "num_images": args["timed"],
        "repeats": args["repeats"],
        "devices": args["devices"],
        "attack": {"name": "uap", "radius": 0.2},
        "peers": peers,
    }
    sections = {"universal_speed": speed, "universal": universal}
    wanted = {"speed": "universal_speed", "strength": "universal"}
    asked = {wanted[part]: sections[wanted[part]] for part in args["parts"]}
    return ConfigDict({"name": "bench_universal", "seed": 0, "data": args["dataset"], **asked})
