"""Pytree tools: dataclasses whose numbers are leaves, selection by mask, loops that also run inside `shard_map`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp


def static(**kwargs: Any) -> Any:
    """A dataclass field that is structure, not a number."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type) -> type:
    """A class as a frozen dataclass, if it is none yet, and as a pytree whose structure knows the class.

    Fields are leaves, those marked `static` are structure. Under `jax.tree_util.register_dataclass` and `flax.struct`
    (jaxlib 0.10 and 0.11) the structures of two classes compare equal where their fields do, and only hashes differ;
    `jit` then calls the program of one class for an object of the other wherever hashes collide in its table
    (measured: for 5 of 400 pairs of classes).

    Raises:
        ValueError: a field that is not an argument of the constructor.
    """
    is_made = "__dataclass_fields__" in vars(cls)
    node: Any = cls if is_made else dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(node)
    if hidden := [f.name for f in fields if not f.init]:
        raise ValueError(f"fields={hidden} of {cls.__name__} must be arguments of its constructor")
    data, meta = ([f.name for f in fields if bool(f.metadata.get("static")) is kind] for kind in (False, True))
    paths = [jax.tree_util.GetAttrKey(name) for name in data]

    def values(self: Any) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in data])

    def structure(self: Any) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in meta])

    jax.tree_util.register_pytree_with_keys(
        node,
        lambda self: (tuple(zip(paths, values(self), strict=True)), structure(self)),
        lambda kept, leaves: node(**dict(zip(data, leaves, strict=True)), **dict(zip(meta, kept, strict=True))),
        lambda self: (values(self), structure(self)),
    )
    return node


def kinds_of(tree: Any) -> int:
    """A number that tells apart trees of different classes, as a static argument of `jit` where users' classes come in.

    Those may have been registered in another way than by `pytree`. Hashes of structures know the classes of nodes, but
    not what is static in them.
    """
    return hash(jax.tree.structure(tree))


def jit_by_kinds(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of a function that takes objects of users' classes; see `kinds_of`."""

    def by_kinds(kinds: int, *arguments: Any) -> Any:
        return function(*arguments)

    compiled = jax.jit(by_kinds, static_argnums=0)

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        return compiled(kinds_of(arguments), *arguments)

    return called


def select(mask: Any, new: Any, old: Any) -> Any:
    """Tree-wise `new` where the leading axes' `mask` holds, else `old`."""

    def pick(a: Any, b: Any) -> Any:
        return jnp.where(jnp.reshape(mask, jnp.shape(mask) + (1,) * (jnp.ndim(a) - jnp.ndim(mask))), a, b)

    return jax.tree.map(pick, new, old)


def as_pytree(function: Callable[..., Any]) -> Any:
    """A callable that may cross a `jit` boundary: pytrees stay as they are, plain functions become static."""
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function


def beside(images: Any, tree: Any) -> Any:
    """The tree whole on every device that the images are split over; as it is where they lie on one."""
    place = images.sharding
    if len(place.device_set) == 1 or not isinstance(place, jax.sharding.NamedSharding):
        return tree
    return jax.device_put(tree, jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec()))


# --- loops ----------------------------------------------------------------------------------------------------------


def repeat(step: Callable[[Any], Any], carry: Any, times: int) -> Any:
    """`step` applied `times` times by one `lax.scan`."""
    carry = varying_as(step, carry)
    return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=times)[0]


def one_ahead(before: Any, now: Any) -> Any:
    """`now`, which a loop of the host has just asked for, once `before`, which it had asked for before that, is there.

    For programs in which devices wait for each other: the host stays one of them ahead, and they do not queue up. On a
    loaded CPU a loop that was many ahead was seen to wait for ever.
    """
    jax.block_until_ready(before)
    return now


def branch(index: Any, steps: list[Callable[[Any], Any]], state: Any) -> Any:
    """`steps[index](state)` by `lax.switch`."""

    def alike(*states: Any) -> Any:
        return functools.reduce(lambda a, b: jax.tree.map(_vary_like, a, b), states)

    state = varying_as(lambda state: alike(*(step(state) for step in steps)), state)
    return jax.lax.switch(index, [lambda s, step=step: alike(step(s), state) for step in steps], state)


def is_in_shard_map() -> bool:
    """Whether the trace under way is that of `shard_map`, where arrays vary over the mesh or do not."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def varying_as(step: Callable[[Any], Any], state: Any) -> Any:
    """The state with the type that `step` gives back, inside of `shard_map`.

    A constant in a loop's state does not vary over the mesh, what a step makes of it does, and `scan` refuses to put
    one in the place of the other; elsewhere the state is returned as it is.
    """
    if not is_in_shard_map():
        return state
    for _ in range(len(jax.tree.leaves(state)) + 1):
        after = jax.eval_shape(step, state)
        wider = jax.tree.map(_vary_like, state, after)
        if jax.tree.map(_varying_axes, wider) == jax.tree.map(_varying_axes, state):
            return state
        state = wider
    return state


def _vary_like(leaf: Any, like: Any) -> Any:
    missing = _varying_axes(like) - _varying_axes(leaf)
    return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf


def _varying_axes(leaf: Any) -> frozenset[str]:
    kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    axes = getattr(kind, "manual_axis_type", None)  # jax 0.10; other versions name the set `vma`
    return frozenset(axes.varying if axes else getattr(kind, "vma", None) or ())


def vary_over(axis_name: str | None, tree: Any) -> Any:
    """The tree with every leaf varying over a mapped axis, so that its gradient is this device's own share."""
    if axis_name is None:
        return tree

    def cast(leaf: Any) -> Any:
        missing = axis_name not in _varying_axes(leaf) and is_in_shard_map()
        return jax.lax.pcast(leaf, axis_name, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)
