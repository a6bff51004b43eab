"""Signs that an accuracy under attack is too good to be true: what is measured, and on which images.

The signs are those of Athalye, Carlini & Wagner (2018), section 3.1, and Carlini et al. (2019), section 5, and some of
our own; what each measurement means is decided in `spa_jax.evaluation.checks`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spa_jax.attacks import fgsm, make_attack, pgd, rays
from spa_jax.data.types import Examples
from spa_jax.evaluation import checks
from spa_jax.evaluation.judging import judge_all, logits_of_batch
from spa_jax.evaluation.records import Check, ModelReport
from spa_jax.evaluation.sweep import AnyAttack, DeviceBatch, Sweep, evenly_spaced, example_keys, make_sweep, stream
from spa_jax.goals import is_answer
from spa_jax.losses import cross_entropy, margin
from spa_jax.solvers import random_search
from spa_jax.spaces.generated import NoisePainter
from spa_jax.spaces.noise import L1, L2, NORMS, LInf, noise_ball
from spa_jax.types import (
    Example,
    Flags,
    Images,
    Key,
    Keys,
    Labels,
    Logits,
    Loss,
    Predict,
    Scalar,
    Space,
    Values,
    Victim,
)
from spa_jax.validation import require_number
from spa_jax.victims.tracing import is_randomized

_EXAMPLES = 128
_STEPS = 10
_MORE = 3
_QUERIES = 10
_LARGE_RADIUS = 0.5
_PART_OF_THE_RADIUS = 0.25


class Ball(NamedTuple):
    """Noise that an attack searches: its norm, "linf", "l2" or "l1", and its radius on the [0, 1] scale."""

    norm: str
    radius: float

    def __str__(self) -> str:
        """As checks are named after it: `linf 0.1`."""
        return f"{self.norm} {self.radius:g}"


def sanity_checks(
    victim: Victim,
    split: Examples,
    *,
    radius: Scalar,
    norm: str = "linf",
    key: Key,
    batch_size: int = _EXAMPLES,
    num_examples: int = _EXAMPLES,
    num_steps: int = _STEPS,
    mesh: Mesh | None = None,
) -> list[Check]:
    """Look on a part of a split for signs that an accuracy under attack is too good; a check that fails is a warning.

    - `finite`: logits, and gradients of cross entropy and margin, are finite at the images and near them.
    - `usable_logits`: raw scores, not probabilities, not saturated (`spa_jax.check_logits`).
    - `flat_logits`: on most images the two largest logits lie at least 0.05 and four rounding errors apart. Where they
      do not, the softmax is almost uniform: cross entropy hardly tells the nearest class, and rounding decides.
    - `deterministic`: two calls with different keys give the same logits.
    - `independent`: the logits of an image stay the same when the other images of its batch are replaced by black ones.
      BatchNorm in training mode fails.
    - `gradients`: at most 5 % of the images have a cross-entropy gradient of exactly zero.
    - `margin_gradients`: on most images the gradient of the margin is large enough to matter: followed for 0.5 in every
      pixel, at which any image can be turned into the same grey, it changes the margin by 1/1000 of itself or more.
    - `gradient_size[linf 0.1]`: a quarter of the radius along the gradient changes the margin by 1/10 to 10 times what
      the gradient promises. A gradient that was hidden promises less, a shattered one more.
    - `many_steps[linf 0.1]`: one step (FGSM) does not fool more images than many (PGD): the difference lies within two
      standard errors, as in McNemar's test.
    - `black_box[linf 0.1]`: as many random points of the ball, judged without a gradient, do not fool more images than
      PGD, within two standard errors.
    - `label_only[linf 0.1]`, in l-infinity: RayS, which reads the decision alone (`spa_jax.rays`), with ten times as
      many queries as PGD has steps does not fool more images than PGD, within two standard errors. What hides or
      misleads gradients and scores does nothing to it.
    - `more_steps[linf 0.1]`, of a randomised victim: PGD with three times as many steps does not fool fewer images than
      PGD, within two standard errors.
    - `large_radius`: at an l-infinity radius of 0.5 every image can be turned into the same grey, so no classifier
      can keep more than the share of the most frequent class; what it keeps beyond is the attack's failure.

    The thresholds are our choice. Passing all checks proves nothing: a victim that knows the images of the test set by
    heart, such as a median over those it has stored, looks like an honest one, and no check of this kind can tell.
    Failing one is a reason not to believe the number.

    It costs about 30 forward and backward passes at the default of 10 steps, and for each l-infinity radius 110 forward
    ones; of a randomised victim 30 more. The victim sees batches of one size.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        radius: of the accuracy in question, on the [0, 1] scale.
        norm: "linf", "l2" or "l1".
        key: of all draws.
        batch_size: as for `evaluate`.
        num_examples: how many, evenly spaced over the split.
        num_steps: of PGD.
        mesh: as for `evaluate`.

    Raises:
        ValueError: a radius that is not positive, an unknown norm, `num_examples` below 1; else as `evaluate`.
    """
    require_number("radius", radius, "larger than 0", lambda r: r > 0)
    noise_ball(norm, radius)
    sweep = make_sweep(evenly_spaced(split, num_examples), batch_size, mesh)
    return check_victim(sweep.place(victim), sweep, [Ball(norm, float(radius))], key, num_examples, num_steps)


def noise_balls(attacks: Iterable[AnyAttack]) -> list[Ball]:
    """The balls of noise that attacks search, each once; a function of one's own does not say."""
    found: dict[Ball, None] = {}

    def note(attack: Any) -> Any:
        searched = [(_NORM_OF.get(type(space)), space) for space in map(_noise_of, attack.members().values())]
        for norm, owner in searched or [(getattr(attack, "norm", None), attack)]:
            radius: Any = getattr(owner, "radius", None)
            is_number = isinstance(radius, int | float | np.generic | np.ndarray | jax.Array)
            if norm in tuple(NORMS) and is_number and 0 < float(radius) < np.inf:
                found[Ball(norm, float(radius))] = None
        return attack

    for attack in attacks:
        if hasattr(attack, "inside"):
            attack.inside(note)
    return list(found)


_NORM_OF = {LInf: "linf", L2: "l2", L1: "l1", NoisePainter: "linf"}


def _noise_of(space: Any) -> Any:
    """The space itself, or the generator of its noise."""
    return getattr(space, "decode", space)


def check_victim(
    victim: Victim,
    sweep: Sweep,
    balls: Sequence[Ball],
    key: Key,
    num_examples: int = _EXAMPLES,
    num_steps: int = _STEPS,
) -> list[Check]:
    """The checks of a victim that is placed on the sweep's devices, on a part of its split; see `sanity_checks`."""
    whole_batches = -(-num_examples // sweep.batch_size) * sweep.batch_size
    sweep, key = dataclasses.replace(sweep, split=evenly_spaced(sweep.split, whole_batches)), stream(key, "sanity")
    seen = _probe(sweep.predict(victim), sweep, [noise_ball(*ball) for ball in balls], stream(key, "probe"))
    attacks: dict[str, AnyAttack] = {"large_radius": pgd(_LARGE_RADIUS, num_steps)}
    for ball in balls:
        attacks[f"one_step[{ball}]"] = fgsm(ball.radius, ball.norm)
        attacks[f"many_steps[{ball}]"] = pgd(ball.radius, num_steps, norm=ball.norm)
        attacks[f"black_box[{ball}]"] = make_attack(noise_ball(*ball), margin, random_search(), num_steps)
        if ball.norm == "linf":
            attacks[f"label_only[{ball}]"] = rays(ball.radius, _QUERIES * num_steps)
        if is_randomized(victim):
            attacks[f"more_steps[{ball}]"] = pgd(ball.radius, _MORE * num_steps, norm=ball.norm)
    report = judge_all(victim, sweep, attacks, key, survivors_only=False)
    correct = {name: record.correct for name, record in report.attacks.items()}
    by_label = [ball for ball in balls if ball.norm == "linf"]
    again = [ball for ball in balls if f"more_steps[{ball}]" in correct]
    steps = zip(balls, seen["steps"], strict=True)
    return [
        checks.finite(seen),
        checks.usable_logits(seen["logits"]),
        checks.flat_logits(seen["logits"]),
        checks.deterministic(seen["logits"], seen["other_draw"]),
        checks.independent(seen["logits"], seen["other_batch"]),
        checks.gradients(seen["cross_entropy"], seen["margin"]),
        checks.margin_gradients(seen["cross_entropy"], seen["margin"]),
        *(checks.gradient_size(ball, step) for ball, step in steps),
        *(checks.many_steps(ball, correct[f"one_step[{ball}]"], correct[f"many_steps[{ball}]"]) for ball in balls),
        *(checks.black_box(ball, correct[f"many_steps[{ball}]"], correct[f"black_box[{ball}]"]) for ball in balls),
        *(checks.label_only(ball, correct[f"many_steps[{ball}]"], correct[f"label_only[{ball}]"]) for ball in by_label),
        *(checks.more_steps(ball, correct[f"many_steps[{ball}]"], correct[f"more_steps[{ball}]"]) for ball in again),
        checks.large_radius(correct["large_radius"], report.labels),
    ]


def above_clean(report: ModelReport) -> list[Check]:
    """Of a randomised victim, for each attack: whether attacked images are right more often than as they are.

    The first draw of the clean images is left out: it has chosen the images that are attacked.
    """
    if report.failed is None:
        return []
    clean, found = report.failed * report.draws / (report.draws - 1), []
    for name, record in report.attacks.items():
        attacked = report.attacked(name)
        found.append(checks.above_clean(name, clean[attacked], np.asarray(record.failed)[attacked]))
    return found


def _probe(predict: Predict, sweep: Sweep, balls: Sequence[Space], key: Key) -> Any:
    """What the victim answers, and what its gradients are like, at each image and a step away from it."""
    first, second = stream(key, "first"), stream(key, "second")

    def look(batch: DeviceBatch) -> Any:
        seen = batch.index, batch.images
        return {
            "logits": logits_of_batch(predict, first, batch),
            "other_draw": logits_of_batch(predict, second, batch),
            "other_batch": _among_black_images(predict, first, *seen),
            "cross_entropy": _gradient(cross_entropy, predict, first, *seen, batch.labels),
            "margin": _gradient(margin, predict, first, *seen, batch.labels),
            "steps": [_step(ball, predict, first, *seen, batch.labels) for ball in balls],
        }

    return sweep.run("sanity", look, np.arange(len(sweep.split)))


@jax.jit
def _among_black_images(predict: Predict, key: Key, index: Any, images: Images) -> Logits:
    """The logits of each image with every other image of its batch made black: of the even ones, then of the odd."""
    keys, is_even = example_keys(key, index), jnp.arange(len(images)) % 2 == 0

    def logits_of(kept: Flags) -> Logits:
        return predict(keys, jnp.where(kept[:, None, None, None], images, 0))

    return jnp.where(is_even[:, None], logits_of(is_even), logits_of(~is_even))


class Gradient(NamedTuple):
    """Of a loss at an image, [b].

    Attributes:
        finite: whether every entry is.
        zero: whether every entry is exactly 0.
        reach: by how much a step of 0.5 in every pixel along its signs would change the loss, were it linear.
        value: the loss.
    """

    finite: Any
    zero: Any
    reach: Any
    value: Any


@jax.jit(static_argnums=0)
def _gradient(loss: Loss, predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> Gradient:
    values, _, gradient = climb(loss, predict, example_keys(key, index), images, labels)
    pixels = gradient.reshape(len(images), -1)
    return Gradient(
        jnp.all(jnp.isfinite(pixels), axis=1),
        jnp.all(pixels == 0, axis=1),
        _LARGE_RADIUS * jnp.sum(jnp.abs(pixels), axis=1),
        values.astype(jnp.float32),
    )


def climb(loss: Loss, predict: Predict, keys: Keys, images: Images, labels: Labels) -> tuple[Values, Logits, Images]:
    """A loss [b] at images, the logits there, and the gradient, by one forward and one backward pass."""

    def total(images: Images) -> tuple[Any, Any]:
        logits = predict(keys, images)
        values = loss(logits, Example(images, labels))
        return jnp.sum(values), (values, logits)

    (_, (values, logits)), gradient = jax.value_and_grad(total, has_aux=True)(images)
    return values, logits, gradient


class Step(NamedTuple):
    """A step along the gradient of the margin, a quarter of a radius long, [b].

    Attributes:
        promised: the change of the margin by the gradient.
        change: of the margin.
        finite: whether the victim's answer there is.
    """

    promised: Any
    change: Any
    finite: Any


@jax.jit
def _step(ball: Space, predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> Step:
    keys = example_keys(key, index)
    before, _, gradient = climb(margin, predict, keys, images, labels)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)

    def move(image: Any, gradient: Any) -> Any:
        example = Example(image)
        return ball.apply(ball.project(_PART_OF_THE_RADIUS * ball.direction(gradient), example), example)

    moved = jax.vmap(move)(images, gradient)
    logits = predict(keys, moved)
    promised = jnp.sum(gradient * (moved - images), axis=(1, 2, 3))
    after = margin(logits, Example(moved, labels))
    return Step(promised, after.astype(jnp.float32) - before.astype(jnp.float32), is_answer(logits))
