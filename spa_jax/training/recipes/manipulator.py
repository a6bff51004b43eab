"""Training of a learned edit: an autoencoder with an attribute subspace whose edits keep everything else (MSP)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spa_jax.edits import EditFunction, get_edit
from spa_jax.manipulators import attributes_of, set_attributes
from spa_jax.manipulators import manipulator as learned_edit
from spa_jax.solvers import fold_in
from spa_jax.training.discriminator import require_discriminator, scores, teach_discriminator
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState, as_variables
from spa_jax.types import Images, Keys, Values
from spa_jax.validation import require_number

_NOISE, _TARGET, _KNOWN, _CYCLE = 0, 1, 2, 3
_LEAST_VARIANCE = 0.02

Attributes = Float[Array, "b m"]
Latents = Float[Array, "b d"]
Known = tuple[tuple[int, EditFunction], ...]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the terms of the loss; every term is a sum over what it compares and a mean over the batch."""

    reconstruction: float
    kl: float
    attribute: float
    complement: float
    cycle: float
    cycle_complement: float
    label: float
    known: float
    patch: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name = f"{field.name}_weight"
            require_number(name, getattr(self, field.name), "0 or larger", lambda weight: weight >= 0)


class Drawn(NamedTuple):
    """What a step computes with; attributes and random targets in the subspace's units."""

    keys: Any
    images: Any
    labels: Any
    attributes: Any
    targets: Any
    only_known: Any


class Seen(NamedTuple):
    """A batch in latent space and back: as it is, and with the attributes set."""

    mean: Any
    log_variance: Any
    decoded: Any
    targets: Any
    edited_h: Any
    edited: Any


def manipulator(
    learner: Learner,
    reconstruction_weight: float = 30.0,
    kl_weight: float = 1.0,
    attribute_weight: float = 50.0,
    complement_weight: float = 0.01,
    cycle_weight: float = 20.0,
    cycle_complement_weight: float = 1.0,
    label_weight: float = 10.0,
    known_weight: float = 30.0,
    patch_weight: float = 0.0,
    span: float = 1.8,
    cycle_noise: float = 0.1,
    known_edits: Mapping[str, str] | None = None,
) -> TrainStep:
    """A step of training `models.MSP` to edit attributes and nothing else.

    Every term is a sum over pixels, latent dimensions or attributes, and a mean over the examples. With x' = D(h') the
    image decoded from h with random attributes t, uniform within `span` scales of the centre:

    - reconstruction: ||D(h) - x||^2. Over the KL term, it is the likelihood of pixels of variance 1 / 60.
    - kl: of q(h | x) to N(0, I), beside the attributes' subspace. The attributes are taken from the mean without noise,
      so that the decoder reads them from the subspace (our choice).
    - attribute: ||M h - a||^2; complement: ||M^T a - h||^2 (both Li et al. 2020, where their weights are equal; here
      the KL term keeps the complement small).
    - cycle: ||M E(x') - t||^2, the edited image reads back as it was set; cycle_complement: the latent distance of what
      is not an attribute, ||E(x') - h'||^2 / (2 var), in posterior variances (our choice; without these two the decoder
      learns to ignore the subspace).
    - label: the cross entropy of labels predicted from the part of the latent that is not an attribute, on x and on
      x': the edit must keep the class (SPAA's code has such a term, with the victim in the place of a linear layer).
    - known: ||D(h') - A(x, t - v)||^2 for attributes whose edit A is known, on those examples where no other one is
      edited (all of them, or a half where there are others).
    - patch: hinge losses of a discriminator of patches, which sees x and x' (MSP has a PatchGAN on reconstructions).

    Args:
        learner: `models.MSP` and its optimiser; with `patch_weight`, also a network named "discriminator".
        reconstruction_weight, kl_weight: of these terms, 0 or larger. The values of all weights are our choice, the
            best of those tried on rotated digits and MNIST.
        attribute_weight, complement_weight: of these terms.
        cycle_weight, cycle_complement_weight: of these terms.
        label_weight, known_weight, patch_weight: of these terms.
        cycle_noise: standard deviation of Gaussian noise on x' before it is encoded again, so that the decoder cannot
            hide what the encoder wants to read in faint patterns (as Bashkirova et al. 2019 do for cycles).
        span: of the random targets, in scales about the centre; 1.73 is the whole range of a uniform attribute.
        known_edits: names of the model's attributes and of the edits in `spa_jax.EDITS` that add to them, in the same
            unit: `{"rotation": "rotation"}`.

    Raises:
        ValueError: a number out of range; a name that is not an attribute or not an edit; no discriminator.
    """
    weights = Weights(
        reconstruction_weight, kl_weight, attribute_weight, complement_weight, cycle_weight, cycle_complement_weight,
        label_weight, known_weight, patch_weight,
    )  # fmt: skip
    require_number("cycle_noise", cycle_noise, "0 or larger", lambda value: value >= 0)
    require_number("span", span, "larger than 0", lambda value: value > 0)
    known = _known_edits(learner, known_edits or {})
    if patch_weight:
        require_discriminator(learner, "patch_weight", patch_weight)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        keys, x, y = examples.key, examples.image, examples.label
        average = functools.partial(learner.average, weights=examples.weight)
        attributes = _in_scales(state, batch["attribute"])
        only_known = _only_known(keys, known, attributes.shape[1])
        drawn = Drawn(keys, x, y, attributes, _random_targets(keys, attributes, span), only_known)

        def loss(params: Any) -> Any:
            net = _Net(learner.model, as_variables(params, state.batch_stats))
            seen = _seen(net, drawn, known)
            terms = _terms(net, drawn, seen) | _cycle_terms(net, drawn, seen, cycle_noise)
            if known:
                terms["known"] = drawn.only_known * _squares(seen.edited - _known_images(net, drawn, seen, known))
            if weights.patch:
                terms["patch"] = -scores(learner, state, seen.edited)
            shared = {name: average(term) for name, term in terms.items()}
            value = sum(getattr(weights, name) * term for name, term in shared.items())
            return value, (state.batch_stats, shared)

        after, metrics = learner.descend(state, loss)
        if not weights.patch:
            return after, metrics
        edited = _seen(_Net(learner.model, state.training_variables()), drawn, known).edited
        return teach_discriminator(learner, after, x, edited, examples.weight), metrics

    return train_step


# --- the autoencoder on a batch -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Net:
    """An autoencoder with its variables."""

    model: Any
    variables: Any

    def __call__(self, method: str, x: Any) -> Any:
        return self.model.apply(self.variables, x, method=method)

    @property
    def subspace(self) -> Float[Array, "m d"]:
        return self.variables["params"]["subspace"]


def _in_scales(state: TrainState, attributes: Attributes) -> Attributes:
    """Attributes in the subspace's units."""
    constants = state.batch_stats
    return (attributes - constants["attribute_centre"][None]) / constants["attribute_scale"][None]


def _random_targets(keys: Keys, attributes: Attributes, span: float) -> Attributes:
    def draw(key: Any) -> Float[Array, " m"]:
        return jax.random.uniform(key, attributes.shape[1:], attributes.dtype, -span, span)

    return jax.vmap(draw)(fold_in(keys, _TARGET))


def _normal(keys: Keys, like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def _only_known(keys: Keys, known: Known, count: int) -> Values:
    """1 for examples on which only known edits are set (all if every edit is known, else half), 0 for others."""
    share = 1.0 if len(known) == count else 0.5 if known else 0.0
    return jax.vmap(lambda key: jax.random.bernoulli(key, share))(fold_in(keys, _KNOWN)).astype(jnp.float32)


def _seen(net: _Net, drawn: Drawn, known: Known) -> Seen:
    mean, log_variance = net("encode", drawn.images)
    own = attributes_of(mean, net.subspace)
    noise = _normal(fold_in(drawn.keys, _NOISE), mean)
    h = set_attributes(mean + jnp.exp(log_variance / 2) * noise, net.subspace, own)
    is_free = jnp.zeros(own.shape[1]).at[jnp.asarray([i for i, _ in known], jnp.int32)].set(1)
    is_asked = (drawn.only_known[:, None] == 0) | (is_free == 1)[None]
    targets = jnp.where(is_asked, drawn.targets, jax.lax.stop_gradient(own))
    edited_h = set_attributes(h, net.subspace, targets)
    return Seen(mean, log_variance, net("decode", h), targets, edited_h, net("decode", edited_h))


# --- terms of the loss, per example ---------------------------------------------------------------------------------


def _squares(x: Float[Array, "b ..."]) -> Values:
    return jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def _beside(h: Latents, subspace: Float[Array, "m d"]) -> Latents:
    """What latent vectors hold beside the attributes."""
    return set_attributes(h, subspace, jnp.zeros((len(h), len(subspace)), h.dtype))


def _terms(net: _Net, drawn: Drawn, seen: Seen) -> dict[str, Values]:
    subspace, mean = net.subspace, seen.mean
    spread = jnp.sum(jnp.exp(seen.log_variance) - 1 - seen.log_variance, axis=1)
    return {
        "reconstruction": _squares(seen.decoded - drawn.images),
        "kl": (spread + _squares(_beside(mean, subspace))) / 2,
        "attribute": _squares(attributes_of(mean, subspace) - drawn.attributes),
        "complement": _squares(jnp.matmul(drawn.attributes, subspace) - mean),
    }


def _cycle_terms(net: _Net, drawn: Drawn, seen: Seen, sigma: float) -> dict[str, Values]:
    noise = _normal(fold_in(drawn.keys, _CYCLE), seen.edited)
    mean = net("encode", seen.edited + sigma * noise)[0]
    variance = jnp.maximum(jax.lax.stop_gradient(jnp.exp(seen.log_variance)), _LEAST_VARIANCE)
    moved = _beside(mean - seen.edited_h, net.subspace)
    told = [net("classify", h) for h in (seen.mean, mean)]
    losses = [optax.softmax_cross_entropy_with_integer_labels(logits, drawn.labels) for logits in told]
    return {
        "cycle": _squares(attributes_of(mean, net.subspace) - seen.targets),
        "cycle_complement": jnp.sum(moved**2 / variance, axis=1) / 2,
        "label": losses[0] + losses[1],
    }


# --- known edits ----------------------------------------------------------------------------------------------------


def _known_edits(learner: Learner, known_edits: Mapping[str, str]) -> Known:
    names = getattr(learner.model, "attribute_names", ())
    for name in known_edits:
        if name not in names:
            raise ValueError(f"known_edits={dict(known_edits)!r}: {name!r} is not an attribute of the model, {names!r}")
    return tuple((names.index(name), get_edit(edit).function) for name, edit in known_edits.items())


def _known_images(net: _Net, drawn: Drawn, seen: Seen, known: Known) -> Images:
    """The images with every known edit made, one after the other, by as much as the latent vector was moved."""
    scale = net.variables["batch_stats"]["attribute_scale"][None]
    moved = (seen.targets - attributes_of(seen.mean, net.subspace)) * scale
    images, moved = drawn.images, jax.lax.stop_gradient(moved)
    for index, edit in known:
        images = jax.vmap(edit)(images, moved[:, index])
    return images


# --- model selection ------------------------------------------------------------------------------------------------


def manipulator_errors(
    learner: Learner,
    state: TrainState,
    keys: Keys,
    images: Images,
    labels: Any,
    attribute: Attributes,
    **options: Any,
) -> dict[str, Values]:
    """How well images are rebuilt, read and edited, by example, [b], with the averaged weights where there are any.

    Every image is edited to the mirror image of its attributes, 2 * centre - a, and back.

    Returns:
        psnr: of D(E(x)), in decibels; reading_error: mean |M h - a| over attributes, in scales; cycle_error: the same
        between the values read from the edited image and those set; round_trip_psnr: of the image edited and
        edited back.
    """
    net = _Net(learner.model, state.variables())
    h, own = net("encode", images)[0], _in_scales(state, attribute)
    mirrored = net("encode", net("decode", set_attributes(h, net.subspace, -own)))[0]
    back = set_attributes(mirrored, net.subspace, attributes_of(h, net.subspace))
    return {
        "psnr": _psnr(net("decode", h), images),
        "reading_error": _mean_error(attributes_of(h, net.subspace), own),
        "cycle_error": _mean_error(attributes_of(mirrored, net.subspace), -own),
        "round_trip_psnr": _psnr(net("decode", back), images),
    }


def _psnr(decoded: Images, images: Images) -> Values:
    return -10 * jnp.log10(jnp.mean((decoded - images) ** 2, axis=(1, 2, 3)) + 1e-10)


def _mean_error(values: Attributes, wanted: Attributes) -> Values:
    return jnp.mean(jnp.abs(values - wanted), axis=1)


def as_edit(model: Any, mean: Any, std: Any, **options: Any) -> Callable[[Any], Any]:
    """From an autoencoder's variables to an edit for `spa_jax.attribute`."""
    return functools.partial(learned_edit, model)
