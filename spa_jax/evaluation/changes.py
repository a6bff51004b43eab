"""What an attack did to each image: how far it moved it, from where, and by which attribute values."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from spa_jax import distances
from spa_jax.attributes import EDITS
from spa_jax.combinators import InChunks, Restarts
from spa_jax.spaces import Attribute, Chain, chain, per_example
from spa_jax.types import Example, Images, Values, Variables

AttributeArray: TypeAlias = Float[Array | np.ndarray, " b"] | Float[Array | np.ndarray, "b m"]

_LONE_ATTRIBUTE = "attribute"


def attack_distances(attack: Any, result: Any, x: Images) -> dict[str, Values]:
    """How far each attacked image x' lies from its original and from its own edited image.

    Args:
        attack: what made the result; it knows how its attributes edit an image.
        result: of the attack on `x`.
        x: the originals, [b, h, w, c] in [0, 1].

    Returns:
        `linf_from_edited`: |x' - A(x, a)|_inf, what the noise adds to the image edited by the result's own attribute
        values (not by those of `result.edited`); `linf` and `l2`: |x' - x|; `ssim`: of x' and x. [b] each.
    """
    return _distances(result.x, x, edited_images(attack, result, x))


@jax.jit
def _distances(attacked: Images, x: Images, edited: Images) -> dict[str, Values]:
    return {
        "linf_from_edited": distances.linf(attacked, edited),
        "linf": distances.linf(attacked, x),
        "l2": distances.l2(attacked, x),
        "ssim": distances.ssim(attacked, x),
    }


def edited_images(attack: Any, result: Any, x: Images) -> Images:
    """The images with the result's attribute values and without its noise, A(x, a).

    An attack without attributes has the originals, one of attributes alone the attacked images themselves. Of an attack
    that hides what it moves (`worst_of`, a function of one's own) nothing is known: it has the originals too.
    """
    if not attribute_spaces(attack):
        return x
    if not moves_noise(attack):
        return result.x
    return _edited(_innermost(attack), result.variables, x)


@jax.jit
def _edited(attack: Any, variables: Variables, x: Images) -> Images:
    if hasattr(attack, "edit"):
        return attack.edit(variables, x)
    named = attribute_spaces(attack)
    space = per_example(chain(**named))
    return space.apply({name: variables[name] for name in named}, space.prepare(Example(x)))


def attribute_spaces(attack: Any) -> dict[str, Attribute]:
    """The attributes that an attack moves, named as their variables are; a lone one is named after its edit."""
    space = _space(attack)
    members = dict(space.items()) if isinstance(space, Chain) else {_name_of_edit(space): space}
    return {name: member for name, member in members.items() if isinstance(member, Attribute)}


def attribute_values(attack: Any, variables: Variables) -> dict[str, AttributeArray]:
    """The values of an attack's attributes by name: numbers [b], or vectors [b, m]."""
    names = attribute_spaces(attack)
    if not isinstance(variables, Mapping):
        return {name: variables for name in names}
    return {name: variables[name] for name in names}


def names_of_numbers(name: str, space: Attribute) -> list[str]:
    """A name for each number of an attribute: its own for one, `face[smile]` or `face[0]` for those of a vector."""
    count = np.size(space.low)
    if count == 1:
        return [name]
    named = getattr(space.edit, "names", None)
    return [f"{name}[{entry}]" for entry in (named if named and len(named) == count else range(count))]


def moves_noise(attack: Any) -> bool:
    """Whether an attack is known to change images by something else than attributes."""
    space = _space(attack)
    members = space.spaces if isinstance(space, Chain) else (space,)
    return space is not None and not all(isinstance(member, Attribute) for member in members)


def _space(attack: Any) -> Any:
    return getattr(getattr(_innermost(attack), "space", None), "space", None)


def _innermost(attack: Any) -> Any:
    while isinstance(attack, Restarts | InChunks):
        attack = attack.attack
    return attack


def _name_of_edit(space: Any) -> str:
    function = getattr(getattr(space, "edit", None), "func", None)
    return next((name for name, named in EDITS.items() if named.function is function), _LONE_ATTRIBUTE)
