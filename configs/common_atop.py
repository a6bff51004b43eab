"""What the experiments with purifiers share: their networks, how they are trained, and how the systems are attacked."""

from collections.abc import Sequence
from typing import Any

from common import PLACEMENT

Config = dict[str, Any]

GAN = 0.01
"""The weight of the discriminator's term, our choice: in AToP's code it is 1 and has no gradient."""
FGSM = {"name": "pgd", "num_steps": 1, "rel_step_size": 1.0, "random_start": False, "keep": "last"}
"""One step from the clean image, kept even where it is no stronger, which spares the forward pass that would tell."""
TITLES = {"rt1": "RT1", "rt2": "RT2", "rt3": "RT3"}


def purifier_networks(width: int, depth: int, patch_size: int) -> dict[str, Config]:
    """The networks that complete images, by name; the inpainter is trained against a discriminator.

    Args:
        width: of the U-Net and the inpainter at full resolution, and an eighth of the masked autoencoder's.
        depth: halvings by the U-Net.
        patch_size: of the masked autoencoder.
    """
    return {
        "unet": {"name": "unet", "width": width, "depth": depth},
        "masked_autoencoder": {"name": "masked_autoencoder", "patch_size": patch_size, "width": 8 * width},
        "inpainter": {"name": "inpainter", "width": width},
    }


def purification_experiment(
    radius: float,
    networks: dict[str, Config],
    transforms: dict[str, Config],
    epochs: Sequence[float],
    evaluate_every: Sequence[int] = (1, 1),
    **fine_tuning: Any,
) -> Config:
    """A standard classifier, and before it each transform alone, each purifier as trained, and fine-tuned by AToP.

    Every system is attacked through its full gradient, with the mean over 10 draws, and with the purifier's gradient
    taken as the identity (BPDA); the worst case counts an image only if it withstands all. "transfer" is crafted on the
    classifier alone.

    Args:
        radius: of the training's FGSM and of the attacks.
        networks: of purifiers by name.
        transforms: by name.
        epochs: of pre-training and of fine-tuning.
        evaluate_every: epochs between evaluations, of both.
        fine_tuning: further options of the recipe `atop`.
    """
    stages: list[Config] = []
    victims: Config = {
        f"{TITLES[name]} alone": _purified(transform)
        for name, transform in transforms.items()
        if transform["name"] != "rt3"
    }
    for name, network in networks.items():
        for kind, transform in transforms.items():
            before, after = f"{name}_{kind}", f"{name}_{kind}_atop"
            stages += [
                _pretrained(before, network, transform, epochs[0], evaluate_every[0]),
                _fine_tuned(after, before, network, transform, radius, epochs[1], evaluate_every[1], fine_tuning),
            ]
            title = f"{name} {TITLES[kind]}"
            victims |= {title: _purified({"part": before}), f"{title} AToP": _purified({"part": after})}
    names = [stage["name"] for stage in stages]
    return {
        "name": "standard",
        "recipe": "standard",
        "parts": {"classifier": {"model": "standard"}} | {name: {"model": name} for name in names},
        "victims": victims,
        "evaluation": {"attacks": system_attacks(radius), "select_by": "clean"},
        "baselines": stages,
    }


def system_attacks(radius: float, num_steps: int = 20, draws: int = 10) -> Config:
    """Attacks on a system of transform, purifier and classifier; first, on all images, that of the classifier alone."""
    pgd = {"name": "pgd", "radius": radius, "num_steps": num_steps}

    def crafted(victim: Any) -> Config:
        return {"name": "crafted_on", "attack": pgd, "victim": victim}

    through = {"name": "bypassed", "victim": "attacked"}
    return {
        "transfer": crafted({"model": "standard"}),
        "FGSM": {"name": "fgsm", "radius": radius},
        f"PGD-{num_steps}": pgd,
        f"PGD-{num_steps} EOT-{draws}": crafted({"name": "eot", "victim": "attacked", "n": draws}),
        f"BPDA EOT-{draws}": crafted({"name": "eot", "victim": through, "n": draws}),
    }


def unseen_attacks(radius: float, sides: int, draws: int = 10) -> Config:
    """Attacks that no training here has seen, on the mean over draws; of the seen norm too, at other radii.

    Args:
        radius: of the training's attack, l-infinity.
        sides: of the images, in pixels. The l1 radius is that of noise of `radius` in a tenth of the pixels, the l2
            radius in a third of them.
        draws: of a system that draws at random.
    """
    pixels = sides**2
    steps: Config = {"num_steps": 20, "draws": draws}
    joint = {"name": "spa", "radius": radius, "attributes": PLACEMENT, "start_points": 9, "start_steps": 1} | steps
    return {
        "linf, half radius": {"name": "pgd", "radius": radius / 2} | steps,
        "linf": {"name": "pgd", "radius": radius} | steps,
        "linf, double radius": {"name": "pgd", "radius": 2 * radius} | steps,
        "l2": {"name": "pgd", "norm": "l2", "radius": radius * (pixels / 3) ** 0.5} | steps,
        "l1": {"name": "apgd_ce", "norm": "l1", "radius": radius * pixels / 10} | steps,
        "attributes": joint | {"radius": 0.0, "start": "draws"},
        "joint SPA": joint,
        "StAdv": {"name": "stadv", "radius": 0.8} | steps,
    }


def _purified(purifier: Config) -> Config:
    return {"name": "purify", "victim": {"model": "standard"}, "purifier": purifier}


def _pretrained(name: str, network: Config, transform: Config, epochs: float, every: int) -> Config:
    return _stage(name, network, {"name": "purifier", "transform": transform}, epochs, every, 2e-3)


def _fine_tuned(
    name: str,
    before: str,
    network: Config,
    transform: Config,
    radius: float,
    epochs: float,
    every: int,
    options: Config,
) -> Config:
    recipe = {
        "name": "atop",
        "classifier": {"part": "classifier"},
        "transform": transform,
        "attack": FGSM | {"radius": radius},
        **options,
    }
    stage = _stage(name, network, recipe, epochs, every, 1e-3)
    stage["training"]["start_from"] = {"part": before}
    return stage


def _stage(name: str, network: Config, recipe: Config, epochs: float, every: int, peak: float) -> Config:
    """A training of a purifier; with a discriminator for an inpainter."""
    adam = {"optimizer": "adam", "schedule": {"name": "one_cycle", "peak": peak}}
    stage = {"name": name, "model": network, "recipe": recipe, "training": {"num_epochs": epochs}, **adam}
    stage["training"]["evaluate_every"] = every
    if network["name"] != "inpainter":
        return stage
    judge = {"model": {"name": "patch_discriminator", "width": 32}, **adam}
    return stage | {"recipe": recipe | {"gan_weight": GAN}, "networks": {"discriminator": judge}}
