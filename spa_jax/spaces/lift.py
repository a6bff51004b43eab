"""From one example to a batch: variables for each example, or one set of variables shared by all of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.numerics import Grid, at_least_float32, finite_or_zero
from spa_jax.spaces.base import require_space
from spa_jax.spaces.rounded import Rounded
from spa_jax.trees import pytree, static, vary_over
from spa_jax.types import Example, Flags, Keys, Space, Values, Variables


@pytree
class Lifted:
    """A space over a batch; see `per_example` and `universal`."""

    space: Any
    shared: bool = static(default=False)
    axis_name: str | None = static(default=None)

    def init(self, keys: Keys, examples: Example) -> Variables:
        """Random starts, [b, ...]; one shared start from the single key `keys`."""
        if self.shared:
            return self.space.init(keys, _blank(examples))
        return jax.vmap(self.space.init)(keys, examples)

    def identity(self, examples: Example) -> Variables:
        """The variables that leave every image alone."""
        return self.space.identity(_blank(examples)) if self.shared else jax.vmap(self.space.identity)(examples)

    def project(self, v: Variables, examples: Example) -> Variables:
        """The nearest allowed variables."""
        return self.space.project(v, None) if self.shared else jax.vmap(self.space.project)(v, examples)

    def apply(self, v: Variables, examples: Example) -> Any:
        """The changed images, [b, h, w, c]."""
        return jax.vmap(self.space.apply, in_axes=(None if self.shared else 0, 0))(v, examples)

    @property
    def penalises(self) -> bool:
        """Whether the space has a penalty."""
        return self.space.penalises

    def penalty(self, v: Variables, examples: Example) -> Values:
        """What is subtracted from each example's loss, [b]."""
        return jax.vmap(self.space.penalty, in_axes=(None if self.shared else 0, 0))(v, examples)

    def map(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function`, written for one example's variables, over the batch (or once, where they are shared)."""
        return function(*arguments) if self.shared else jax.vmap(function)(*arguments)

    def example_keys(self, keys: Keys, count: int) -> Keys:
        """One key for each of `count` examples, for a randomised victim.

        Shared variables have a single key, which is folded with each example's position in the global batch.
        """
        if keys.ndim:
            return keys
        first = 0 if self.axis_name is None else count * jax.lax.axis_index(self.axis_name)
        return jax.vmap(jax.random.fold_in, (None, 0))(keys, first + jnp.arange(count))

    def members(self) -> Mapping[str, Any]:
        """The members of the space by name."""
        return self.space.members()

    def scaled(self, share: Any) -> "Lifted":
        """The lift of the smaller space."""
        return dataclasses.replace(self, space=self.space.scaled(share))

    def on_grid(self, grid: Grid) -> "Lifted":
        """The lift of the space whose images are rounded to a grid."""
        return dataclasses.replace(self, space=Rounded(self.space, grid))

    def without(self, *names: str) -> "Lifted":
        """The lift of a chain with some links left out."""
        return dataclasses.replace(self, space=self.space.without(*names))

    def summarise(self, values: Values | Flags, examples: Example) -> Any:
        """What decides about a set of variables: the value of each example, or their weighted mean [] where shared.

        Padded examples have weight 0, and over a mapped axis the mean is that of all devices.
        """
        return self._mean(values, examples) if self.shared else values

    def gradient(self, objective: Callable[..., tuple[Values, Any]], v: Variables, examples: Example) -> Any:
        """The gradient of each example's objective, or of the weighted mean where the variables are shared.

        Entries that are NaN or infinite are 0.

        Args:
            objective: `(variables, probe [b]) -> (values [b], anything)`; the probe is that of `finite_gradient`.
            v: where.
            examples: their weights count.

        Returns:
            What the objective returned beside its values, the gradient, and the gradient in the probe [b].
        """

        def total(v: Variables, probe: Any) -> tuple[Any, Any]:
            values, seen = objective(v, probe)
            return jnp.sum(values * self._shares(examples, values.dtype) if self.shared else values), seen

        probe = jnp.zeros_like(examples.image[:, 0, 0, 0])
        v = vary_over(self.axis_name, v) if self.shared else v
        (gradient, count), seen = jax.grad(total, (0, 1), has_aux=True)(v, probe)
        gradient = jax.tree.map(finite_or_zero, gradient)
        return seen, self._total(gradient) if self.shared else gradient, count

    def count(self, numbers: Any) -> Any:
        """A tree of numbers of each example [b], or their sums [] where the variables are shared."""
        if not self.shared:
            return numbers
        sums = jax.tree.map(lambda own: jnp.sum(own).astype(own.dtype), numbers)
        return self._total(vary_over(self.axis_name, sums))

    def _mean(self, values: Values | Flags, examples: Example) -> Any:
        """The weighted mean of those that are numbers: NaN where none is, and 0 where none has a weight."""
        dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else examples.image.dtype
        values = values.astype(at_least_float32(dtype))
        shares = self._shares(examples, values.dtype)
        counted = jnp.where(jnp.isnan(values), 0, shares)
        weight, of_numbers = self._total(jnp.stack([jnp.sum(shares), jnp.sum(counted)]))
        total = self._total(jnp.sum(jnp.where(counted > 0, values * counted, 0)))
        mean = total / jnp.where(of_numbers > 0, of_numbers, 1)
        return jnp.where((weight > 0) & (of_numbers == 0), jnp.nan, mean)

    def _shares(self, examples: Example, dtype: Any) -> Values:
        weights = jnp.ones(len(examples.image), dtype) if examples.weight is None else examples.weight.astype(dtype)
        total = self._total(vary_over(self.axis_name, jnp.sum(weights)))
        return weights / jnp.where(total > 0, total, 1)

    def _total(self, tree: Any) -> Any:
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)


def _blank(examples: Example) -> Example:
    """A grey image: shared variables must not start from one of the images, which is another one on each device."""
    return Example(jnp.full(examples.image.shape[1:], 0.5, examples.image.dtype))


def per_example(space: Space) -> Lifted:
    """The lift of ordinary attacks: every image has variables of its own.

    Raises:
        ValueError: not a space.
    """
    require_space(space)
    return Lifted(space)


def universal(space: Space, axis_name: str | None = None) -> Lifted:
    """The lift of universal perturbations: one set of variables changes all images.

    Shared noise is kept in its ball; each image's sum with it is clipped to [0, 1] when it is applied. The loss is the
    mean over the batch, weighted by `weight`, so that padding does not count. The state of such an attack can be
    carried over batches: `attack.init` on the first, `attack.step` on each. Keep the last
    variables then (`keep="last"`): the best ones would be compared across batches, of which some are easier.

    Args:
        space: what may change about an image.
        axis_name: the mapped axis over which batches are split, inside `pmap` or `shard_map`: means and gradients are
            those of the global batch. Under `jit` with sharded arrays they are global already: None.

    Raises:
        ValueError: not a space.
    """
    require_space(space)
    return Lifted(space, shared=True, axis_name=axis_name)
