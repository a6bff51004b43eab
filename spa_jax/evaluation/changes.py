"""What an attack did to each image: how far it moved it, from where, and by which attribute values."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from spa_jax import distances
from spa_jax.types import Images, Labels, Values, Variables, Victim

AttributeArray: TypeAlias = Float[Array | np.ndarray, " b"] | Float[Array | np.ndarray, "b m"]


def attack_distances(result: Any, x: Images, edited: Images) -> dict[str, Values]:
    """How far each attacked image x' lies from its original and from its own edited image.

    Args:
        result: of the attack on `x`.
        x: the originals, [b, h, w, c] in [0, 1].
        edited: of `edited_images`.

    Returns:
        `linf_from_edited`: |x' - A(x, a)|_inf, what the noise adds to the image edited by the result's own attribute
        values; `linf` and `l2`: |x' - x|; `ssim`: of x' and x. [b] each.
    """
    return _distances(result.x, x, edited)


@jax.jit
def _distances(attacked: Images, x: Images, edited: Images) -> dict[str, Values]:
    return {
        "linf_from_edited": distances.linf(attacked, edited),
        "linf": distances.linf(attacked, x),
        "l2": distances.l2(attacked, x),
        "ssim": distances.ssim(attacked, x),
    }


def edited_images(attack: Any, result: Any, victim: Victim, x: Images, y: Labels) -> Images:
    """The images with the result's attribute values and without its noise, A(x, a).

    An attack without attributes has the originals, one of attributes alone the attacked images themselves. An attack
    whose variables are not known (`worst_of`, a function of one's own) has the originals too.

    Args:
        attack: what made the result.
        result: of the attack on `x` and `y`.
        victim: that was attacked.
        x: the originals, [b, h, w, c] in [0, 1].
        y: their labels.
    """
    if not attribute_spaces(attack):
        return x
    noise = _noise_names(attack)
    if not noise:
        return result.x
    if len(noise) == 1 and noise[0] in result.without:
        return result.without[noise[0]]
    return attack.apply(result.variables, victim, x, y, without=noise)


def attribute_spaces(attack: Any) -> dict[str, Any]:
    """The attributes that an attack moves, named as their variables are; a lone one is named after its edit."""
    return {name: space for name, space in _members(attack).items() if space.grid_axes}


def attribute_values(attack: Any, variables: Variables) -> dict[str, AttributeArray]:
    """The values of an attack's attributes by name: numbers [b], or vectors [b, m]."""
    names = attribute_spaces(attack)
    if not isinstance(variables, Mapping):
        return {name: variables for name in names}
    return {name: variables[name] for name in names}


def names_of_numbers(name: str, space: Any) -> list[str]:
    """A name for each number of an attribute: its own for one, `face[smile]` or `face[0]` for those of a vector."""
    count = space.grid_axes
    if count == 1:
        return [name]
    named = getattr(space.edit, "names", None)
    return [f"{name}[{entry}]" for entry in (named if named and len(named) == count else range(count))]


def moves_noise(attack: Any) -> bool:
    """Whether an attack is known to change images by something else than attributes."""
    return bool(_noise_names(attack))


def _noise_names(attack: Any) -> tuple[str, ...]:
    return tuple(name for name, space in _members(attack).items() if not space.grid_axes)


def _members(attack: Any) -> Mapping[str, Any]:
    """The spaces that an attack moves by name; a function of one's own does not say."""
    return attack.members() if hasattr(attack, "members") else {}
