"""Reports to make pages of, with images, alarms and names that try to be markup; and a parser of pages."""

import dataclasses
from html.parser import HTMLParser

import numpy as np

from spa_jax.evaluation import AttackRecord, AttributeValues, Check, Curve, ModelReport
from spa_jax.evaluation.gallery import Gallery, Sighting
from spa_jax.evaluation.markdown import Setting

WICKED = '<script>alert("1")</script>&lt;"\'`'
COUNT, CLASSES = 60, 3


def setting(**changes):
    own = {"title": "A title", "dataset": "made up, test split", "seed": 3, "config": {"a": 1}}
    own |= {"versions": {"spa_jax": "0.1"}, "devices": "1 x cpu", "class_names": None}
    return Setting(**(own | changes))


def gallery(rng, fooled, labels, *, size=6, channels=1, noise=True):
    index = np.arange(len(labels), dtype=np.int32)
    clean, edited = rng.uniform(size=(2, len(labels), size, size, channels)).astype(np.float32)
    attacked = np.clip(edited + rng.uniform(-0.1, 0.1, edited.shape), 0, 1).astype(np.float32) if noise else edited
    answers = np.where(fooled, (labels + 1) % CLASSES, labels).astype(np.int32)
    values = {"rotation": rng.uniform(-20, 20, len(labels)).astype(np.float32)}
    closeness = rng.normal(size=len(labels)).astype(np.float32)
    seen = Sighting(index, labels, fooled, answers, labels, closeness, clean, edited, attacked, values)
    return Gallery(seen, {"rotation": ["rotation"]}, noise).thinned(4)


def model_report(seed=0, name="pgd", **options):
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT, dtype=np.int32) % CLASSES
    clean = rng.uniform(size=COUNT) < 0.95
    attacks = {}
    for attack, share, noise in ((name, 0.5, True), ("turned", 0.7, False)):
        correct = clean & (rng.uniform(size=COUNT) < share)
        kept = gallery(rng, ~correct, labels, noise=noise, **options)
        values = (
            {} if noise else {"rotation": AttributeValues(rng.uniform(-20, 20, 17).astype(np.float32), -20.0, 20.0)}
        )
        attacks[attack] = AttackRecord(correct, int(clean.sum()), attributes=values, gallery=kept)
    checks = (
        Check("deterministic", True, "all is well", "nothing", {}),
        Check("gradients", False, "zero on 40.0 % of images", "look for a rounding", {}, "the gradient vanishes"),
    )
    curves = (
        Curve("radius", name, (0.0, 0.05, 0.1), (57, 30 + seed, 3), COUNT),
        Curve("attribute", "rotation", (-20.0, 0.0, 20.0), (20, 57, 11), COUNT),
    )
    return ModelReport(labels, clean, attacks, False, checks, curves)


def models():
    """A good one, one without alarms, and one of a wicked name under a wicked attack."""
    calm = dataclasses.replace(model_report(1), checks=())
    return {"standard": model_report(0), "calm": calm, WICKED: model_report(2, name=WICKED)}


class Page(HTMLParser):
    """The elements of a page: a list of (tag, attributes, text inside), and whatever does not nest well."""

    EMPTY = frozenset({"meta", "img", "input", "br", "link", "path", "line", "circle", "fefuncr", "fefuncg", "fefuncb"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.problems, self._open = [], [], []
        self.feed(text)
        self.close()
        self.problems += [f"{name} is open" for name, _ in self._open]

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        if len({name for name, _ in attrs}) < len(attrs):
            self.problems.append(f"{tag} has an attribute twice")
        self.elements.append(element)
        self._open.append((tag, element))

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in self.EMPTY:
            self.problems.append(f"{tag} is closed at once")

    def handle_endtag(self, tag):
        if not self._open or self._open[-1][0] != tag:
            self.problems.append(f"{tag} closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data):
        for _, element in self._open:
            element[2] += data

    def all(self, tag, **attributes):
        """The elements of a tag with these attributes."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [own for own in self.elements if own[0] == tag and wanted.items() <= own[1].items()]
