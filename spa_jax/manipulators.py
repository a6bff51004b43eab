"""Learned edits: an image's attributes read from, and set in, the latent subspace of an autoencoder (MSP)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spa_jax.errors import suggest
from spa_jax.numerics import clip_to_unit
from spa_jax.trees import pytree, static
from spa_jax.types import Image
from spa_jax.validation import is_traced, require_choice
from spa_jax.victims.rewriting import quick

Residual = Literal["none", "faded", "full"]
"""How much of what the decoder cannot reproduce is added back to an edited image; see `manipulator`."""

_ROUNDING = 1e-5
_VISIBLE_CHANGE = 0.2


# --- the subspace ---------------------------------------------------------------------------------------------------


def attributes_of(h: Float[Array, "*b d"], subspace: Float[Array, "m d"]) -> Float[Array, "*b m"]:
    """The attributes v = M h that latent vectors hold (Li et al. 2020), in the subspace's units."""
    return jnp.matmul(h, subspace.T, precision=jax.lax.Precision.HIGHEST)


def shift_attributes(
    h: Float[Array, "*b d"], subspace: Float[Array, "m d"], change: Float[Array, "*b m"]
) -> Float[Array, "*b d"]:
    """The nearest latent vectors whose attributes differ from those of `h` by `change`, for any M of full rank.

    h' = h + change (M M^T)^-1 M. The authors leave the inverse out, which is exact only for orthonormal rows.
    """
    gram = jnp.matmul(subspace, subspace.T, precision=jax.lax.Precision.HIGHEST)
    onto = jnp.linalg.solve(gram, subspace)
    return h + jnp.matmul(change, onto, precision=jax.lax.Precision.HIGHEST)


def set_attributes(
    h: Float[Array, "*b d"], subspace: Float[Array, "m d"], values: Float[Array, "*b m"]
) -> Float[Array, "*b d"]:
    """The nearest latent vectors with these attributes; `values` of 0 leaves only the part that is not an attribute."""
    return shift_attributes(h, subspace, values - attributes_of(h, subspace))


# --- the edit -------------------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """What an edit computes once for an image.

    Attributes:
        h: [d] its latent vector.
        values: [m] all of its attributes, in their units.
        decoded: [h, w, c] what the decoder makes of it.
    """

    h: Any
    values: Any
    decoded: Any


@pytree
class Manipulator:
    """An image's attributes set by a trained autoencoder; see `manipulator`."""

    variables: Any
    centre: Any
    scale: Any
    model: Any = static()
    names: tuple[str, ...] = static()
    chosen: tuple[int, ...] = static()
    residual: Residual = static(default="faded")

    def only(self, *names: str) -> "Manipulator":
        """The edit of these attributes, in this order; the others are kept at the image's own values.

        Raises:
            ValueError: no name, a repeated name, or one that this edit does not have (the valid ones are listed).
        """
        for name in names:
            if name not in self.names:
                raise ValueError(f"name={name!r} is not an attribute of this manipulator{suggest(name, self.names)}")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"names={names!r} must be one or more different attributes")
        chosen = tuple(self.chosen[self.names.index(name)] for name in names)
        return dataclasses.replace(self, names=names, chosen=chosen)

    def prepare(self, image: Image) -> Prepared:
        """What does not depend on the value: the latent vector, all attributes and the decoded image."""
        h = self._apply(image[None], "encode")[0][0]
        values = self.centre + self.scale * attributes_of(h, self._subspace)
        return Prepared(h, values, self._apply(h[None], "decode")[0])

    def reconstruct(self, image: Image) -> Image:
        """What encoder and decoder make of the image without an edit, D(E(x))."""
        return self.prepare(image).decoded

    def read(self, image: Image, prepared: Prepared | None = None) -> Float[Array, "*k"]:
        """The image's own values of the edited attributes, in their units: [k], or a number where there is one."""
        own = (self.prepare(image) if prepared is None else prepared).values[jnp.asarray(self.chosen)]
        return own[0] if len(self.chosen) == 1 else own

    def __call__(self, image: Image, value: Float[Array, "*k"] | float, prepared: Prepared | None = None) -> Image:
        """The image with the attributes set, in [0, 1]; at the image's own values, the image bit for bit.

        Args:
            image: [h, w, c] in [0, 1].
            value: of the edited attributes, in their units: [k], or a number where there is one.
            prepared: of `prepare(image)`; None: computed here.

        Raises:
            ValueError: not one value for each of the edited attributes.
        """
        if np.size(value) != len(self.chosen):
            raise ValueError(f"value.shape={np.shape(value)!r} must hold one number for each of {self.names}")
        prepared = self.prepare(image) if prepared is None else prepared
        change, is_identity = self._change(jnp.reshape(value, -1), prepared)
        h = shift_attributes(prepared.h, self._subspace, change / self.scale)
        decoded = self._apply(h[None], "decode")[0]
        return self._compose(image, decoded, prepared.decoded, is_identity)

    def _change(self, value: Float[Array, " k"], prepared: Prepared) -> tuple[Any, Any]:
        """By how much all attributes change, [m], and whether the change is at most rounding."""
        chosen = jnp.asarray(self.chosen)
        change = jnp.zeros_like(prepared.values).at[chosen].set(value - prepared.values[chosen])
        tolerance = _ROUNDING * (self.scale + jnp.abs(prepared.values))
        return change, jnp.all(jnp.abs(change) <= tolerance)

    def _compose(self, image: Image, decoded: Image, before: Image, is_identity: Any) -> Image:
        change = _zero_where(is_identity, decoded - before)
        if self.residual == "none":
            return clip_to_unit(jnp.where(is_identity, image + change, decoded))
        faded = _visibility(change) * (image - before) if self.residual == "faded" else 0
        return clip_to_unit(image + change - faded)

    @property
    def _subspace(self) -> Float[Array, "m d"]:
        return self.variables["params"]["subspace"]

    def _apply(self, x: Any, method: str) -> Any:
        return quick(functools.partial(self.model.apply, method=method))(self.variables, x)


def _zero_where(mask: Any, x: Any) -> Any:
    """0 where the mask holds, with the gradient of `x` everywhere."""
    return jnp.where(mask, x - jax.lax.stop_gradient(x), x)


def _visibility(change: Image) -> Float[Array, "h w 1"]:
    """How visibly a change of the image has altered each pixel's neighbourhood of 3x3: 0 unaltered, towards 1."""
    squared = jnp.pad(jnp.sum(change**2, axis=-1), 1)
    rows = squared[:-2] + squared[1:-1] + squared[2:]
    energy = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return -jnp.expm1(-energy / _VISIBLE_CHANGE**2)[..., None]


def manipulator(
    model: Any,
    variables: Any,
    centre: Any = None,
    scale: Any = None,
    names: Sequence[str] | None = None,
    residual: Residual = "faded",
) -> Manipulator:
    """An image edit that sets attributes by a trained autoencoder with an attribute subspace, such as `models.MSP`.

    x' = x + D(h') - D(h) with h = E(x) and h' the nearest latent vector whose attributes M h' are those set; the
    attributes that are not edited are kept at the image's own. The authors decode x' = D(h') alone, which loses what
    the autoencoder does not rebuild; adding the change to the image keeps it, and leaves the image alone bit for bit at
    its own values. What was lost, x - D(h), also stays behind as a ghost where the content moves away. By default
    (our choice) it fades out where the edit changes the image visibly, that is, with the squared change in the 3x3
    pixels around: exp(-sum / 0.04).

    The result is an edit for `spa_jax.attribute`. Its weights are leaves, so that new ones reuse a compiled attack.

    Args:
        model: a hashable flax.linen module with the methods `encode(images [b, h, w, c]) -> (h [b, d], ...)` and
            `decode(h) -> images`, and the parameter "subspace" M [m, d].
        variables: its trained variables.
        centre, scale: [m], what M reads is (attribute - centre) / scale. Default: "attribute_centre" and
            "attribute_scale" among the variables' "batch_stats", where training leaves them.
        names: of the m attributes. Default: the model's `attribute_names`, or attribute_0, attribute_1, ...
        residual: what becomes of x - D(h): it stays ("full"), it fades ("faded"), or x' is D(h') alone ("none").

    Raises:
        ValueError: no subspace; centre, scale or names do not fit it; a scale of 0 or below; an unknown `residual`.
    """
    require_choice("residual", residual, ("none", "faded", "full"))
    if "subspace" not in variables.get("params", {}):
        raise ValueError(f"variables hold {sorted(variables.get('params', {}))}, no parameter 'subspace' [m, d]")
    count = variables["params"]["subspace"].shape[0]
    constants = variables.get("batch_stats", {})
    centre = _checked_constant("centre", constants.get("attribute_centre", 0.0) if centre is None else centre, count)
    scale = _checked_constant("scale", constants.get("attribute_scale", 1.0) if scale is None else scale, count)
    if not is_traced(scale) and bool(np.any(np.asarray(scale) <= 0)):
        raise ValueError(f"scale={scale!r} must be larger than 0 for every attribute")
    names = _checked_names(getattr(model, "attribute_names", None) if names is None else names, count)
    return Manipulator(variables, centre, scale, model, names, tuple(range(count)), residual)


def _checked_constant(name: str, value: Any, count: int) -> Float[Array, " m"]:
    array = jnp.asarray(value, jnp.result_type(float))
    if array.shape not in ((), (count,)):
        raise ValueError(f"{name}.shape={array.shape!r} must be one number, or one for each of {count} attributes")
    return jnp.broadcast_to(array, (count,))


def _checked_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    names = tuple(f"attribute_{i}" for i in range(count)) if not names else tuple(names)
    if len(set(names)) != count or len(names) != count:
        raise ValueError(f"names={names!r} must be {count} different names, one for each attribute")
    return names
