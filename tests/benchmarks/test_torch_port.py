import jax
import numpy as np
import pytest

from spa_jax.benchmarks.torch_port import to_torch
from spa_jax.models import LeNet5, ResNet20, SmallCNN, init_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")

NETWORKS = {
    "small_cnn": (SmallCNN(width=8, hidden=16), (28, 20, 3)),
    "small_cnn_421k": (SmallCNN(convs_per_stage=1), (28, 28, 1)),
    "resnet20": (ResNet20(width=8), (32, 32, 3)),
    "resnet20_odd": (ResNet20(num_classes=7, width=4), (13, 9, 1)),
}


def scattered(variables):
    """Every number moved, so that biases, scales and running statistics show; variances stay above 0."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.abs(leaf + 0.1 * random.normal(size=leaf.shape)).astype(np.float32), variables)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_input_gradients_agree(name):
    torch = pytest.importorskip("torch", reason="PyTorch (extra `bench`) is not installed")
    model, shape = NETWORKS[name]
    variables = scattered(init_variables(model, jax.random.key(0), shape))
    images = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)
    module = to_torch(model, variables, shape)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    logits = module(x)
    logits[:, 0].sum().backward()

    def first_logit(images):
        ours = model.apply(variables, images, train=False)
        return ours[:, 0].sum(), ours

    gradient, ours = jax.jit(jax.grad(first_logit, has_aux=True))(images)
    assert np.abs(ours).max() > 0.1
    np.testing.assert_allclose(logits.detach().numpy(), ours, atol=1e-4, rtol=1e-5)
    theirs = x.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(theirs, gradient, atol=1e-4 * np.abs(gradient).max())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"model=LeNet5 has no PyTorch form; those with one: SmallCNN, ResNet20"):
        to_torch(LeNet5(), {}, (28, 28, 1))


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"model.dtype=.*bfloat16.* must be float32"):
        to_torch(SmallCNN(dtype=jax.numpy.bfloat16), {}, (28, 28, 1))
