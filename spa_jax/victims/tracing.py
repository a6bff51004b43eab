"""Any function from images to logits as a victim that a compiled program takes as an argument.

A function that is not a pytree of arrays is traced at each call. The arrays it closes over become arguments of the
compiled program, which is identified by the jaxpr: changed weights are seen, and a fresh function of equal structure
reuses the program.
"""

import contextlib
import contextvars
import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array, Float, Key

from spa_jax.errors import shown
from spa_jax.trees import kinds_of, pytree, static
from spa_jax.victims.rewriting import compute, evaluate, nested_jaxprs, quick, quick_form

_rewriting = contextvars.ContextVar("rewriting", default=True)


@contextlib.contextmanager
def rewriting(enabled: bool) -> Iterator[None]:
    """Within this context victims are rewritten for a CPU (see `spa_jax.victims.rewriting.quick`), or are not.

    It is on by default. Programs compiled with and without are kept apart.
    """
    token = _rewriting.set(enabled)
    try:
        yield
    finally:
        _rewriting.reset(token)


def is_randomized(victim: Any) -> bool:
    """Whether a victim, or one as an attack sees it, draws at random from its keys."""
    return getattr(victim, "is_randomized", False)


def call(victim: Any, keys: Key[Array, "..."] | None, images: Float[Array, "b h w c"]) -> Any:
    """The logits of a victim; a randomized one also gets one key for each image.

    Raises:
        ValueError: the victim takes other arguments, or returns something else than one array.
    """
    arguments = (keys, images) if is_randomized(victim) else (images,)
    try:
        logits = victim(*arguments)
    except Exception as error:
        _explain(victim, arguments, error)
        raise
    _require_array(logits)
    return logits


def as_victim(model: Any, images: Any, *, inline: bool, rewrite: bool | None = None) -> Any:
    """A victim `(keys, images) -> logits` of a function from images to logits.

    Args:
        model: the function; `randomized(f)` if it takes keys. One that is a pytree of arrays (`classifier`,
            `jax.tree_util.Partial`, an nnx module, wrappers of these) is kept as it is, others are traced.
        images: [b, h, w, c], or a `jax.ShapeDtypeStruct`: what a function is traced for.
        inline: whether the victim is called inside the trace that is under way; then nothing is traced here, and the
            result need not be a pytree of arrays.
        rewrite: whether it is rewritten for a CPU; None: as `rewriting` says.

    Raises:
        ValueError: `model` is not a function from images to logits; at the first call where it is not known before.
    """
    _require_function(model)
    rewrite = _rewriting.get() if rewrite is None else rewrite
    if inline:
        return Kept(model, rewrite)
    return Kept(model, rewrite, kinds_of(model)) if _is_of_arrays(model) else _trace(model, images, rewrite)


def trace_for(model: Any, images: Any, sizes: Iterable[int]) -> Any:
    """The model as a pytree of arrays that is called as before: itself if it is one, else traced for several batches.

    Args:
        model: any victim.
        images: [b, h, w, c], or a `jax.ShapeDtypeStruct`: what it is shown, but for the number of images.
        sizes: how many images it is shown at a time.
    """
    _require_function(model)
    if _is_of_arrays(model):
        return model
    forms = {size: jax.ShapeDtypeStruct((size, *images.shape[1:]), images.dtype) for size in sizes}
    by_size = {size: _trace(model, form, rewrite=False) for size, form in forms.items()}
    return TracedForSizes(by_size, is_randomized(model))


def _is_of_arrays(model: Any) -> bool:
    leaves, structure = jax.tree.flatten(model)
    return not jax.tree_util.treedef_is_leaf(structure) and all(isinstance(leaf, _NUMBERS) for leaf in leaves)


_NUMBERS = (jax.Array, np.ndarray, np.generic, int, float, complex)


@pytree
class Kept:
    """A victim that is called as it is."""

    model: Any
    rewrite: bool = static()
    kinds: int | None = static(default=None)

    def __call__(self, keys: Any, images: Float[Array, "b h w c"]) -> Any:
        def logits(keys: Any, images: Any) -> Any:
            return call(self.model, keys, images)

        return (quick(logits) if self.rewrite else logits)(keys, images)


@pytree
class Traced:
    """A victim that was traced: the arrays it closed over, and its program.

    Raises:
        ValueError: when it is called with images of another shape or type than it was traced for.
    """

    consts: tuple[Any, ...]
    program: "Program" = static()
    rewrite: bool = static()

    def __call__(self, keys: Any, images: Float[Array, "b h w c"]) -> Any:
        seen, traced = (images.shape, images.dtype), self.program.images
        if seen != traced:
            raise ValueError(f"images of shape and type {seen}: the victim was traced for {traced}; trace it again")
        rule = quick_form if self.rewrite and jax.default_backend() == "cpu" else _as_it_is
        (logits,) = evaluate(self.program.jaxpr, self.consts, (keys, images), rule)
        return logits


@pytree
class TracedForSizes:
    """A victim that was traced for several batch sizes; who calls it rewrites it."""

    by_size: dict[int, Traced]
    is_randomized: bool = static()

    def __call__(self, *arguments: Any) -> Any:
        keys, images = arguments if self.is_randomized else (None, *arguments)
        return self.by_size[len(images)](keys, images)


def _as_it_is(equation: Any) -> Any:
    return lambda *inputs: compute(equation, *inputs)


class Program:
    """A jaxpr, equal to another where both compute the same logits and derivatives from the same arguments.

    Attributes:
        jaxpr: from keys [b] and images to logits; its constants are arguments.
        images: shape and type that it was traced for.
    """

    def __init__(self, closed: Any) -> None:
        self.jaxpr = closed.jaxpr
        self.images = (closed.in_avals[1].shape, closed.in_avals[1].dtype)
        self._gradient = _gradient(closed) if any(map(_has_own_derivative, _equations(closed))) else None
        programs = [closed] if self._gradient is None else [closed, self._gradient]
        held = [part for program in programs for part in (*_held_arrays(program), *_settings(program))]
        derived = () if self._gradient is None else self._gradient.consts
        self._identity = (*map(str, programs), *map(_comparable, held), *map(id, derived))
        self._hash = hash(self._identity)

    def __eq__(self, other: object) -> bool:
        # Structures among an equation's parameters may be equal for different classes; their hashes are not.
        return isinstance(other, Program) and self._hash == other._hash and self._identity == other._identity

    def __hash__(self) -> int:
        return self._hash


def _trace(model: Any, images: Any, rewrite: bool) -> Traced:
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images.shape[0]))
    images = jax.ShapeDtypeStruct(images.shape, images.dtype)
    closed = jax.make_jaxpr(lambda keys, images: call(model, keys, images))(keys, images)
    if _held_arrays(closed):
        closed = _traced_again(closed)
    return Traced(tuple(closed.consts), Program(closed), rewrite)


# --- the identity of a program --------------------------------------------------------------------------------------

# A jaxpr's text contains neither the arrays that an inner `jit` closes over, nor functions among an equation's
# parameters, nor the derivatives that functions bring with them. The first become arguments where that is possible;
# where it is not, their identity counts. The second are compared, as all parameters are. For the third the gradient's
# text counts.
# A program keeps its jaxprs, so that identities stay unique.


def _equations(closed: Any) -> Iterator[Any]:
    for equation in getattr(closed, "jaxpr", closed).eqns:
        yield equation
        for nested in nested_jaxprs(equation):
            yield from _equations(nested)


def _held_arrays(closed: Any) -> list[Any]:
    """The arrays inside of a jaxpr's equations."""
    held = []
    for equation in _equations(closed):
        held += [constant for nested in nested_jaxprs(equation) for constant in getattr(nested, "consts", ())]
        held += [part for value in equation.params.values() for part in _parts(value) if _is_array(part)]
        held += [atom.val for atom in equation.invars if isinstance(atom, core.Literal) and np.ndim(atom.val)]
    return held


def _settings(closed: Any) -> list[Any]:
    """The parameters of a jaxpr's equations other than jaxprs; derivatives are left to the text of the gradient."""
    equations = (equation for equation in _equations(closed) if equation.primitive not in _WITH_DERIVATIVE)
    values = (value for equation in equations for value in equation.params.values())
    return [
        value for value in values if not any(isinstance(part, _JAXPRS) or _is_array(part) for part in _parts(value))
    ]


_JAXPRS = (core.Jaxpr, core.ClosedJaxpr)
_WITH_DERIVATIVE = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)


def _comparable(value: Any) -> Any:
    """The value itself, or its identity where it has no hash, as arrays have none."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _parts(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _traced_again(closed: Any) -> Any:
    """The same jaxpr with the arrays that inner `jit`s close over among its constants."""
    function = lambda *args: evaluate(closed.jaxpr, closed.consts, args, _inlined)[0]  # noqa: E731
    return jax.make_jaxpr(function)(*closed.in_avals)


def _inlined(equation: Any) -> Any:
    if equation.primitive is primitives.remat_p or not _held_arrays_of(equation):
        return None
    if equation.primitive is not primitives.jit_p:
        return _as_it_is(equation)
    inner = equation.params["jaxpr"]
    return lambda *inputs: evaluate(inner.jaxpr, inner.consts, inputs, _inlined)


def _held_arrays_of(equation: Any) -> bool:
    return any(getattr(nested, "consts", ()) or _held_arrays(nested) for nested in nested_jaxprs(equation))


def _has_own_derivative(equation: Any) -> bool:
    return equation.primitive in _WITH_DERIVATIVE and not _is_stock_relu(equation)


def _is_stock_relu(equation: Any) -> bool:
    """Whether its derivative is that of `jax.nn.relu`; False where this JAX does not tell, which costs time only."""
    try:
        traced = _closure(equation.params["jvp_jaxpr_fun"].f)["fn"]
        return _closure(traced)["jvp"].f is jax.nn.relu.jvp  # type: ignore[attr-defined]
    except (AttributeError, KeyError, TypeError):
        return False


def _closure(function: Any) -> dict[str, Any]:
    return {
        name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True)
    }


def _gradient(closed: Any) -> Any:
    """The jaxpr of the image gradient, with the constants as arguments: its own are what derivatives close over."""
    keys, images = closed.in_avals

    def gradient(consts: Any, keys: Any, images: Any, g: Any) -> Any:
        _, pull = jax.vjp(lambda images: evaluate(closed.jaxpr, consts, (keys, images), _as_it_is), images)
        return pull([g])

    return jax.make_jaxpr(gradient)(closed.consts, keys, images, closed.out_avals[0])


# --- natural mistakes -----------------------------------------------------------------------------------------------


def _require_function(model: Any) -> None:
    if _is_of("flax.linen", model, "Module") and model.scope is None:
        raise ValueError(
            f"victim={type(model).__name__}(...) is a flax.linen module without weights: "
            "say classifier(model, variables)"
        )
    if not callable(model):
        raise ValueError(f"victim={shown(model)} must be a function from images to logits")


def _explain(victim: Any, arguments: tuple[Any, ...], error: Exception) -> None:
    """Say what is wrong in words of this library where the error of a call is that of a natural mistake."""
    if isinstance(error, TypeError):
        _require_signature(victim, arguments)
        if "argument 'train'" in str(error):
            raise ValueError(
                "the victim's model takes no `train`: instead of classifier(model, variables) say "
                "jax.tree_util.Partial(model.apply, variables)"
            ) from error
    if _is_of("flax.errors", error, "ScopeCollectionNotFound", "ScopeParamNotFoundError"):
        raise ValueError(
            'variables of the victim lack a collection: pass all that model.init returns, or {"params": params}'
        ) from error
    if _is_of("flax.errors", error, "TraceContextError"):
        raise ValueError(
            "the victim changes its own state, as an nnx module in training mode does: call model.eval(), or attack "
            "jax.tree_util.Partial(*spa_jax.models.from_nnx(model))"
        ) from error
    if _is_of("equinox", victim, "Module"):
        raise ValueError(
            f"victim={type(victim).__name__}(...) must take a batch [b, h, w, c]: of an equinox module that takes one "
            "image [c, h, w] say lambda x: jax.vmap(model)(jnp.moveaxis(x, -1, 1))"
        ) from error


def _is_of(module: str, value: Any, *names: str) -> bool:
    """Whether a value is of a class of a module that may not be there."""
    classes = (getattr(sys.modules.get(module), name, ()) for name in names)
    return isinstance(value, tuple(classes))


def _require_signature(victim: Any, arguments: tuple[Any, ...]) -> None:
    try:
        inspect.signature(victim).bind(*arguments)
    except TypeError as error:
        hint = "" if len(arguments) == 2 else "; if it takes (keys, images), say randomized(victim)"
        raise ValueError(f"victim={shown(victim)} must be a function from images to logits: {error}{hint}") from error
    except ValueError:
        return  # a function without a signature


def _require_array(logits: Any) -> None:
    if hasattr(logits, "shape"):
        return
    kind = type(logits).__name__
    if hasattr(logits, "logits"):
        raise ValueError(f"the victim returns {kind}, must be logits [b, k]: say lambda x: victim(x).logits")
    pick = {"tuple": "[0]", "list": "[0]", "dict": '["logits"]'}.get(kind)
    raise ValueError(
        f"the victim returns {kind}, must be logits [b, k]" + (f": say lambda x: victim(x){pick}" if pick else "")
    )
