"""What several experiments share: their data and networks, attacks, and how the parts of attacks are trained."""

import math
from typing import Any

Config = dict[str, Any]

JUDGE = {"name": "small_cnn", "width": 16, "convs_per_stage": 1}
HANDWRITING = {
    "rotation": {"low": -40.0, "high": 40.0, "centre": 0.0, "scale": 30.0},
    "slant": {"low": -15.0, "high": 25.0, "centre": 5.8, "scale": 14.6},
    "stroke_width": {"low": 1.8, "high": 3.5, "centre": 2.6, "scale": 0.7},
}
"""For each attribute of handwritten digits the box to set it in, and its middle and size for a regressor."""

UNIVERSAL_RADII = {"digits": 0.2, "mnist": 0.2, "fashion_mnist": 0.15}
"""The radii of universal perturbations on small grey images; our choice."""

BALANCE_PENALTIES = {"digits": 1.0, "mnist": 1.0, "fashion_mnist": 2.0}
"""Weights of the penalty of class-balanced perturbations. Larger ones spread more and fool less. On MNIST and
Fashion-MNIST chosen on validation images of one or two seeds, so that these fool about as often as plain ones; on
digits not tuned."""

LONG_CRAFTING = {"num_images": 5000, "batch_size": 100, "num_epochs": 12}
"""600 steps for a universal perturbation, for `evaluation.universal`; our choice. After 60, class-balanced ones fooled
less than plain ones on Fashion-MNIST, and two orders of the same images differed by up to 17 points."""

CAA_RANGES = {
    "brightness": {"low": -0.2, "high": 0.2},
    "contrast": {"low": 0.7, "high": 1.3},
    "hue": {"low": -math.pi, "high": math.pi},
    "rotation": {"low": -10.0, "high": 10.0},
    "saturation": {"low": 0.7, "high": 1.3},
}
"""The ranges of CAA (Hsiung et al. 2023), in the order in which the edits are applied, which is our choice."""
PLACEMENT = {
    "rotation": {"low": -15.0, "high": 15.0},
    "scale": {"low": 0.9, "high": 1.1},
    "translation_x": {"low": -0.05, "high": 0.05},
    "translation_y": {"low": -0.05, "high": 0.05},
}
"""Small turns, zooms and shifts, our choice."""


def digits(epochs: float) -> Config:
    """Handwritten digits of 8x8 pixels, and the network for them."""
    return {
        "data": "digits",
        "model": {"name": "small_cnn", "width": 32},
        "optimizer": {"name": "adamw", "weight_decay": 1e-4},
        "training": {"batch_size": 64, "num_epochs": epochs, "evaluate_every": 10},
    }


def small_network() -> Config:
    """A network of 16 and 32 channels, for CPUs."""
    return {"name": "small_cnn", "width": 16, "hidden": 100, "convs_per_stage": 1}


def mnist_like(name: str, epochs: float, radius: float) -> tuple[Config, float]:
    """Data, network and training on "mnist", "fashion_mnist" or "digits", and the radius of universal perturbations.

    Args:
        name: of the data.
        epochs: 0: as many as suit the data.
        radius: 0: that of the data.
    """
    radius = radius or UNIVERSAL_RADII[name]
    if name == "digits":
        return digits(epochs or 30.0), radius
    data = {"name": name, "validation_size": 2000}
    return {"data": data, "model": small_network(), "training": {"num_epochs": epochs or 3.0}}, radius


def cifar10(epochs: float, model: str, dtype: str) -> Config:
    """CIFAR-10, cropped and flipped, and SGD."""
    return {
        "data": {"name": "cifar10", "validation_size": 1000},
        "normalization": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
        "augmentation": {"crop_padding": 4, "flip": True},
        "model": {"name": model, "dtype": dtype},
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
        "training": {"num_epochs": epochs},
    }


def noise_attacks(radius: float, apgd_steps: int = 100) -> Config:
    """One-step and parameter-free attacks by noise, the strongest first."""
    names = {"APGD-CE": "apgd_ce", "APGD-DLR": "apgd_dlr"}
    apgd = {title: {"name": name, "radius": radius, "num_steps": apgd_steps} for title, name in names.items()}
    return apgd | {"FGSM": {"name": "fgsm", "radius": radius}}


def adaptive_attacks(attack: Config, draws: int, at_once: int | None = None) -> Config:
    """One attack on a purified victim that draws at random, by its full gradient and straight through its purifiers.

    Both climb the mean over draws of the victim that is attacked, and are judged by the victim itself; the worst case
    of the report is the worst of both for each image. On a victim without purifier or randomness both are the attack.
    """
    whole = {"name": "eot", "victim": "attacked", "n": draws, "at_once": at_once}
    bypassed = whole | {"victim": {"name": "bypassed", "victim": "attacked"}}
    crafted = {"name": "crafted_on", "attack": attack}
    return {"full gradient": crafted | {"victim": whole}, "straight through": crafted | {"victim": bypassed}}


def unseen_attacks(radius: float, attributes: Config, pixels: int, displacement: float = 0.8) -> Config:
    """Attacks that a model trained at one l-infinity radius has not seen, for its `evaluation`.

    Other radii, other norms, each attribute alone, attributes and noise together, displaced pixels, and one noise for
    all images. Radii in l2 and l1 are our choice: they stand to the l-infinity radius as 0.5 and 12 to 8/255 on
    CIFAR-10's 3072 numbers, scaled by the root of the numbers in l2 and by the numbers in l1.

    Args:
        radius: of the training.
        attributes: ranges by the name of the edit.
        pixels: numbers of an image.
        displacement: of StAdv, in pixels; the default is Laidlaw et al.'s 0.05 on CIFAR-10.
    """
    l2, l1 = 0.287 * radius * math.sqrt(pixels), 0.1245 * radius * pixels
    apgd = {"name": "apgd_ce", "num_steps": 30}
    alone = {
        f"{edit} alone": {"name": "attribute", "edit": edit, **box, "method": "grid", "num_steps": 41}
        for edit, box in attributes.items()
    }
    attacks = {
        "linf, half the radius": apgd | {"radius": radius / 2},
        "linf, twice the radius": apgd | {"radius": 2 * radius},
        "l2": apgd | {"radius": l2, "norm": "l2"},
        "l1": apgd | {"radius": l1, "norm": "l1"},
        **alone,
        "SPA, joint": {"name": "spa", "radius": radius, "attributes": attributes},
        "StAdv": {"name": "stadv", "radius": displacement},
    }
    return {"attacks": attacks, "universal": {"attacks": {"UAP": {"name": "uap", "radius": radius}}}}


def composite_attacks(radius: float, attributes: Config, rounds: int = 5, num_steps: int = 10) -> Config:
    """Composite attacks by the way in which their order is found, and joint ones, at equal cost.

    A pass forward alone, as in the draws that joint attacks start from, counts as a third of a pass forward and
    backward.

    Args:
        radius: of the noise.
        attributes: ranges by the name of the edit.
        rounds: of the composite attacks.
        num_steps: of each component in a round.
    """
    composite = {"name": "caa", "radius": radius, "attributes": attributes}
    joint = {"name": "spa", "radius": radius, "attributes": attributes, "start": "draws"}
    passes = rounds * (1 + (1 + len(attributes)) * num_steps)
    draws, starts = 30, 4
    steps = passes // starts - draws // 3
    of_draws = {"start_points": draws, "num_steps": steps, "restarts": starts}
    return {
        **{
            f"CAA, {order} order": composite | {"order": order, "order_steps": rounds, "num_steps": num_steps}
            for order in ("fixed", "random", "scheduled")
        },
        **{f"joint, {order} order": joint | of_draws | {"order": order} for order in ("fixed", "random", "scheduled")},
    }


def in_training(num_steps: int) -> Config:
    """What `spa` is for the inner loop: steps of the projected gradient from one random start."""
    return {"solver": "projected_gradient", "start": "none", "num_steps": num_steps, "keep": "last"}


def universal_experiment(radius: float, num_classes: int, penalty: float = 1.0) -> Config:
    """Trainings against universal perturbations beside standard and PGD training, and how all are judged.

    The model of the config itself is trained in two stages against class-balanced perturbations. A defended model is
    attacked by perturbations crafted afresh against it on training images: plain, class-balanced, one to each class.

    A batch costs these passes forward and backward, half of its loss being on clean images for all but the last:
    standard 1, at the same time as the weights 2, class-wise 3, two stages 4, free 8, PGD 6.

    Args:
        radius: of all attacks.
        num_classes: of the data.
        penalty: of the class-balanced perturbations that are crafted, see `BALANCE_PENALTIES`.
    """
    uap, pgd = {"name": "uap", "radius": radius}, {"name": "pgd", "radius": radius}
    class_wise, free = uap | {"classes": num_classes}, pgd | {"num_steps": 1}
    return {
        "name": "two_stage",
        "recipe": two_stage(balanced_in_training(radius) | {"classes": num_classes}),
        "evaluation": {
            "attacks": {
                "PGD-20": pgd | {"num_steps": 20},
                "APGD-CE": {"name": "apgd_ce", "radius": radius, "num_steps": 30},
            },
            "selection_attack": pgd | {"num_steps": 5},
            "select_by": "clean",
            "universal": {
                "attacks": {
                    "UAP": uap,
                    "CB-UAP": {"name": "cb_uap", "radius": radius, "penalty": penalty},
                    "targeted UAP": uap | {"loss": "cross_entropy"},
                },
                "targets": {"targeted UAP": "all"},
                "seeds": 3,
            },
        },
        "baselines": (
            {"name": "standard", "recipe": "standard"},
            {"name": "universal", "recipe": in_halves("free", uap | {"rel_step_size": 1.0})},
            {"name": "class_wise", "recipe": in_halves("universal", class_wise | {"rel_step_size": 1.0})},
            {"name": "free", "recipe": in_halves("free", free | {"rel_step_size": 1.0}, replays=4)},
            {"name": "pgd", "recipe": {"name": "adversarial", "attack": pgd | {"num_steps": 5, "keep": "last"}}},
        ),
    }


def spat_experiment(
    radius: float, num_steps: int, smoothing: float = 0.3, apgd_steps: int = 50, masked: bool = True
) -> Config:
    """Training on examples that keep their meaning (SPAT) beside other trainings of the same attack budget.

    Every network is trained against `num_steps` steps. `spat` moves away from smoothed labels and learns hard ones;
    `outer`, `both` and `pgd` are the other three ways to smooth inside, outside, both or neither. The network `judge`,
    trained by PGD from another seed, is where transfer attacks search, and says what it still reads in the examples.

    Args:
        radius: of all attacks.
        num_steps: of each attack in training.
        smoothing: of the labels, inside and outside.
        apgd_steps: of APGD in the report.
        masked: whether to train with the mask of shared pixels too, each step of which takes a pass for every class.
    """
    pgd = {"name": "pgd", "radius": radius}
    hard = pgd | {"num_steps": num_steps, "keep": "last"}
    soft = {"name": "spat", "radius": radius, "num_steps": num_steps, "smoothing": smoothing}
    own = {"name": "trades", "attack_maximises": "own"}
    awp = {"training": {"weight_perturbation": {"gamma": 5e-3, "warmup": 0.1}}}
    outside = {"name": "cross_entropy", "label_smoothing": smoothing}

    def trained(name: str, attack: Config, outer: Any = "cross_entropy", **changes: Any) -> Config:
        return {"name": name, "recipe": {"name": "adversarial", "attack": attack, "outer": outer}, **changes}

    names = {"APGD-CE": "apgd_ce", "APGD-DLR": "apgd_dlr"}
    apgd = {title: {"name": name, "radius": radius, "num_steps": apgd_steps} for title, name in names.items()}
    return {
        **trained("spat", soft),
        "parts": {"judge": {"model": "judge"}},
        "evaluation": {
            "attacks": {
                "PGD-50": pgd | {"num_steps": 50},
                **apgd,
                "C&W": pgd | {"num_steps": 50, "loss": "margin"},
                "transfer": {"name": "crafted_on", "attack": pgd | {"num_steps": 50}, "victim": {"model": "judge"}},
            },
            "survivors_only": False,
            "selection_attack": pgd | {"num_steps": 10},
            "training_examples": {"judge": {"part": "judge"}, "attacks": {"PGD": hard, "SPAT": soft}},
        },
        "baselines": (
            trained("judge", hard, seed=1000),
            trained("pgd", hard),
            trained("trades", hard, "trades"),
            trained("mart", hard, "mart"),
            trained("awp", hard, **awp),
            trained("outer", hard, outside),
            trained("both", soft, outside),
            trained("spat_guarded", soft | {"guard": "anneal"}),
            trained("spat_bce", soft | {"loss": "independent_bce"}),
            *([trained("spat_mask", soft | {"smoothing": 0.0, "mask": "mean"})] if masked else []),
            trained("spat_trades", soft, own),
            trained("spat_mart", soft, "mart"),
            trained("spat_awp", soft, **awp),
        ),
    }


def in_halves(name: str, attack: Config, **options: Any) -> Config:
    """A recipe whose loss is half on clean and half on attacked images."""
    halves = {"name": "cross_entropy", "clean_weight": 0.5, "attacked_weight": 0.5}
    return {"name": name, "outer": halves, "attack": attack, **options}


def balanced_in_training(radius: float) -> Config:
    """The class-balanced attack of two-stage training: perturbed images count until the label is all but impossible."""
    return {"name": "cb_uap", "radius": radius, "cap": 9.0, "adjustment": 0.5, "penalty": 0.0}


def two_stage(attack: Config, steps: int = 2) -> Config:
    """Training in two stages: `steps` of half a radius each on every batch, then a descent. Our choice."""
    return in_halves("universal", attack | {"rel_step_size": 0.5}, steps=steps)


def class_balanced_ablation(radius: float, penalty: float) -> Config:
    """The plain attack, the class-balanced one, and what is left of it without each of its terms."""
    whole = {"name": "cb_uap", "radius": radius, "penalty": penalty}
    low_cap = {"name": "capped_cross_entropy", "cap": 2.0}
    first_reading = {"cap": 9.0, "calibration": 1.0, "penalty": 1.0, "adjustment": 0.0, "penalise": "share"}
    return {
        "UAP": {"name": "uap", "radius": radius},
        "UAP, the cap of CB-UAP": {"name": "uap", "radius": radius, "loss": low_cap},
        "CB-UAP": whole,
        "CB-UAP without adjustment": whole | {"adjustment": 0.0},
        "CB-UAP with calibration": whole | {"calibration": 0.1},
        "CB-UAP without penalty": whole | {"penalty": 0.0},
        "CB-UAP, half the penalty": whole | {"penalty": penalty / 2},
        "CB-UAP, twice the penalty": whole | {"penalty": penalty * 2},
        "CB-UAP, 4 times the penalty": whole | {"penalty": penalty * 4},
        "CB-UAP without running shares": whole | {"decay": 0.0},
        "CB-UAP with a cap of 9": whole | {"cap": 9.0},
        "CB-UAP, first reading": whole | first_reading,
    }


def learned_attacks(title: str, box: Config, joint: Config, generated: Config) -> Config:
    """PGD, the manipulator alone (`title`), and both joint attacks."""
    return {
        "PGD-20": {"name": "pgd", "radius": joint["radius"], "num_steps": 20, "restarts": 2},
        title: {"name": "attribute", "edit": {"part": "manipulator"}, **box, "num_steps": 20},
        "joint, direct noise": joint | {"num_steps": 20, "restarts": 2},
        "joint, generated noise": generated | {"num_steps": 10, "restarts": 2},
    }


def learned_parts(trained: str = "") -> Config:
    """The parts of a learned joint attack; the manipulator of the run `trained`, or of the same one."""
    return {
        "manipulator": {"model": "manipulator", "workdir": trained or None},
        "generator": {"model": "spa", "network": "generator"},
    }


def standard() -> Config:
    """A baseline that is trained without attack, and has no generator."""
    evaluation = {"select_by": "clean"}
    training = {"attack_warmup": 0.0}
    return {"name": "standard", "networks": None, "recipe": "standard", "training": training, "evaluation": evaluation}


def generator(width: int) -> Config:
    """A noise generator and its optimiser, for `networks`."""
    model = {"name": "noise_generator", "width": width}
    return {"model": model, "optimizer": "adam", "schedule": {"name": "one_cycle", "peak": 2e-3}}


def manipulator(recipe: Config) -> Config:
    """A learned manipulator and its optimiser."""
    return {
        "name": "manipulator",
        "model": "msp",
        "recipe": {"name": "manipulator", **recipe},
        "optimizer": {"name": "adam", "b2": 0.99, "clip_norm": 50.0},
        "schedule": {"name": "cosine", "peak": 1.5e-3, "warmup": 0.05, "end": 0.01},
    }


def manipulation(low: Any, high: Any) -> Config:
    """The judgement of a manipulator over a box, by the parts `regressor` and `classifier`."""
    return {"low": low, "high": high, "regressor": {"part": "regressor"}, "classifier": {"part": "classifier"}}


def judges(training: Config, centre: Any, scale: Any, **regressor: Any) -> Config:
    """The parts and baselines that judge a manipulator, and know nothing of it.

    Args:
        training: of both.
        centre, scale: of the regressor's attributes.
        regressor: what else differs for it.
    """
    adam = {"optimizer": "adam", "schedule": {"name": "one_cycle", "peak": 2e-3}, "training": training}
    recipe = {"name": "regressor", "centre": centre, "scale": scale}
    model = JUDGE | {"num_classes": len(centre)}
    return {
        "parts": {"regressor": {"model": "regressor"}, "classifier": {"model": "classifier"}},
        "baselines": (
            {"name": "classifier", "recipe": "standard", "model": JUDGE, **adam},
            {"name": "regressor", "recipe": recipe, "model": model, **adam, **regressor},
        ),
    }


def handwriting(measured: tuple[str, ...]) -> tuple[Config, Config]:
    """The box of rotation and the measured attributes, `low` and `high`, and their `centre` and `scale`."""
    known = [HANDWRITING[name] for name in ("rotation", *measured)]
    values = {key: tuple(own[key] for own in known) for key in ("low", "high", "centre", "scale")}
    return {key: values[key] for key in ("low", "high")}, {key: values[key] for key in ("centre", "scale")}
