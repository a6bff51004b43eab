"""The explorer of a page: images that an attack fooled, and the survivors that came closest."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from spa_jax.evaluation.drawing import fewest_digits, magnification, with_unit
from spa_jax.evaluation.gallery import NO_ANSWER, Gallery
from spa_jax.evaluation.page.markup import Markup, data_script, tag
from spa_jax.evaluation.records import ModelReport

_BUDGET = 2_400_000
_QUOTAS = (*((n, 400) for n in (24, 16, 8, 6, 4, 3, 2, 1)), *((1, n) for n in (200, 100, 50, 20)))
"""How many fooled examples of each class, and examples in all, to try in turn where the images are too many."""
_GREY_LEVELS = 255
_CRISP = 64
"""Images of at most so many pixels a side are shown with their pixels as squares."""

Galleries = Mapping[str, Mapping[str, Gallery]]


class _Images:
    """PNG files in base64, each content once; `encoded` is kept for further collections of the same images."""

    def __init__(self, encoded: dict[Any, str]) -> None:
        self.files: list[str] = []
        self._places: dict[Any, int] = {}
        self._encoded = encoded

    @property
    def size(self) -> int:
        """Characters of all of them."""
        return sum(map(len, self.files))

    def add(self, image: Float[np.ndarray, "h w c"]) -> int:
        """The place of an image in [0, 1] among the files."""
        levels = np.rint(_GREY_LEVELS * np.clip(image, 0, 1)).astype(np.uint8)
        known = (levels.shape, levels.tobytes())
        if known not in self._places:
            if known not in self._encoded:
                self._encoded[known] = base64.b64encode(_png(levels)).decode()
            self._places[known] = len(self.files)
            self.files.append(self._encoded[known])
        return self._places[known]


def _png(levels: UInt8[np.ndarray, "h w c"]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(levels if levels.shape[-1] == 3 else levels[..., 0]).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def explorer(models: Mapping[str, ModelReport], class_names: Sequence[str] | None) -> Markup:
    """The section with its data, or a line that says why there is none."""
    galleries = {
        model: {attack: record.gallery for attack, record in report.attacks.items() if record.gallery is not None}
        for model, report in models.items()
    }
    galleries = {model: own for model, own in galleries.items() if own}
    if not galleries:
        return tag("p", "No images were kept; `evaluation.examples_per_class` of a config says how many.")
    chosen, images = _within_budget(galleries)
    side = next(gallery.sighting.clean.shape[1:] for own in chosen.values() for gallery in own.values())
    labels = np.unique(next(iter(models.values())).labels).tolist()
    content = {
        "classes": labels,
        "names": {str(label): class_name(label, class_names) for label in _answered(chosen, labels)},
        "models": [
            {"name": model, "attacks": [_attack_data(name, own, models[model], images) for name, own in kept.items()]}
            for model, kept in chosen.items()
        ],
        "images": images.files,
        "crisp": max(side[:2]) <= _CRISP,
        "colored": side[2] == 3,
    }
    colors = None if side[2] == 3 else tag("p", "Noise: orange makes a pixel brighter, violet darker.", class_="muted")
    return tag(
        "div", _how_many(chosen, models), _draws(models), colors, _controls(), data_script("explorer-data", content)
    )


def _answered(galleries: Galleries, labels: Sequence[int]) -> list[int]:
    """The classes that occur, and those that are only answered."""
    seen = [gallery.sighting for own in galleries.values() for gallery in own.values()]
    answers = {int(label) for own in seen for label in (*own.answer, *own.edited_answer)}
    return sorted(answers.union(labels) - {NO_ANSWER})


def _draws(models: Mapping[str, ModelReport]) -> Markup | None:
    if all(report.failed is None for report in models.values()):
        return None
    return tag("p", "Victims that draw at random: the answers are of the draw that decided who was fooled.")


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """The name of a class, or its number."""
    return str(label) if class_names is None else class_names[label]


def _within_budget(galleries: Galleries) -> tuple[Galleries, _Images]:
    """As many examples as keep the page small, by the same rule for all models and attacks, and their images."""
    encoded: dict[Any, str] = {}
    images = _collected(galleries, encoded)
    for per_class, most in _QUOTAS:
        if images.size <= _BUDGET:
            break
        galleries = {
            model: {attack: gallery.thinned(per_class, most) for attack, gallery in own.items()}
            for model, own in galleries.items()
        }
        images = _collected(galleries, encoded)
    return galleries, images


def _collected(galleries: Galleries, encoded: dict[Any, str]) -> _Images:
    images = _Images(encoded)
    for own in galleries.values():
        for gallery in own.values():
            _places(gallery, images)
    return images


def _places(gallery: Gallery, images: _Images) -> list[tuple[int, int, int, int]]:
    """Where the clean, edited and attacked image and the noise of each example are; -1 for no noise."""
    seen, gain = gallery.sighting, magnification(gallery.noise)
    places = []
    for clean, edited, attacked in zip(seen.clean, seen.edited, seen.attacked, strict=True):
        noise = images.add(0.5 + gain * (attacked - edited)) if gallery.moves_noise else -1
        places.append((images.add(clean), images.add(edited), images.add(attacked), noise))
    return places


def _attack_data(name: str, gallery: Gallery, report: ModelReport, images: _Images) -> dict[str, Any]:
    """An attack's examples as rows: index, class, fooled, answers attacked and edited, places of images, numbers."""
    seen = gallery.sighting
    told = zip(seen.index, seen.label, seen.fooled, seen.answer, seen.edited_answer, strict=True)
    numbers = [[fewest_digits(number) for number in row] for row in gallery.numbers]
    return {
        "name": name,
        "gain": f"{magnification(gallery.noise):g}",
        "numbers": [with_unit(name) for own in gallery.names.values() for name in own],
        "counts": {str(label): counts for label, counts in fooled_by_class(report, name).items()},
        "rows": [
            [*map(int, who), *where, own]
            for who, where, own in zip(told, _places(gallery, images), numbers, strict=True)
        ],
    }


def fooled_by_class(report: ModelReport, attack: str) -> dict[int, tuple[int, int]]:
    """How many examples of each class an attack fooled, and how many it was run on."""
    standing = report.attacked(attack)
    fooled = standing & ~report.attacks[attack].correct
    return {
        int(label): (int(np.sum(fooled & (report.labels == label))), int(np.sum(standing & (report.labels == label))))
        for label in np.unique(report.labels)
    }


def _how_many(galleries: Galleries, models: Mapping[str, ModelReport]) -> Markup:
    kept = [
        (models[model], attack, own.sighting.fooled) for model in galleries for attack, own in galleries[model].items()
    ]
    fooled = sum(count for report, attack, _ in kept for count, _ in fooled_by_class(report, attack).values())
    shown, survivors = (sum(int(np.sum(flags == is_fooled)) for _, _, flags in kept) for is_fooled in (True, False))
    return tag(
        "p",
        f"This page keeps {shown:,} of {fooled:,} fooled images, the first of each class in the order of the split, "
        f"and {survivors:,} survivors, those of each class on which the attack reached the largest loss.",
    )


def _controls() -> Markup:
    """The choices and the places that the script fills; without it, a line that says so."""
    choices = [
        tag("label", title, tag("select", id=f"explorer-{name}"), class_="choice")
        for name, title in (("model", "Model"), ("attack", "Attack"), ("class", "Class"))
    ]
    lists = [
        tag(
            "section",
            tag("h3", title, id=f"explorer-{name}-title"),
            tag("ul", class_="cards", id=f"explorer-{name}"),
            aria_labelledby=f"explorer-{name}-title",
            class_=f"found {name}",
        )
        for name, title in (("fooled", "Fooled"), ("survivors", "Closest survivors"))
    ]
    shown = tag(
        "div",
        tag("div", *choices, class_="choices", role="group", aria_label="Choose what is shown"),
        tag("p", id="explorer-status", role="status", class_="muted"),
        tag("div", *lists, class_="lists"),
        id="explorer-shown",
        hidden=True,
    )
    without = tag("noscript", tag("p", "The explorer needs JavaScript; everything else on this page does without."))
    return tag("div", without, _diverging(), shown)


def _diverging() -> Markup:
    """A filter that shows grey 0.5 as the page's middle tone, darker as violet and brighter as orange."""
    tables = {"R": "0.33 0.70 0.97 0.99 0.70", "G": "0.15 0.67 0.97 0.72 0.35", "B": "0.53 0.82 0.97 0.39 0.02"}
    channels = [Markup(f'<feFunc{name} type="table" tableValues="{values}"/>') for name, values in tables.items()]
    transfer = Markup(f"<feComponentTransfer>{''.join(channels)}</feComponentTransfer>")
    own = Markup(f'<filter id="signed" color-interpolation-filters="sRGB">{transfer}</filter>')
    return tag("svg", own, class_="hidden", aria_hidden="true", width="0", height="0")
