import inspect
import subprocess
import sys

import pytest

from spa_jax.data import SOURCES, load_dataset


def test_unknown_name_lists_the_valid_ones_and_suggests_one():
    with pytest.raises(ValueError, match=r"name='cifar-10' is not a data set; did you mean 'cifar10'\?") as error:
        load_dataset("cifar-10")
    assert all(name in str(error.value) for name in SOURCES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"image_sise": 8}, "image_sise=8 is not an option of data set 'digits'; valid: none"),
        ("synthetic", {"train_sise": 8}, r"train_sise=8 .*did you mean 'train_size'\?.*valid: .*num_classes"),
        ("mnist", {"dataset": "cifar10"}, "dataset='cifar10' is not an option of data set 'mnist'"),
        ("tfds", {}, "data set 'tfds' needs dataset"),
        ("folder", {}, "data set 'folder' needs data_dir"),
        ("tiny_imagenet", {}, "data set 'tiny_imagenet' needs data_dir"),
        ("celeb_a", {"attribute": "Male"}, r"attribute='Male' is not an option of .*did you mean 'attributes'\?"),
    ],
)
def test_unknown_and_missing_options_are_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "folder",
            {"image_size": 8.0, "data_dir": "."},
            r"image_size=8.0 must be int or tuple\[int, int\] or None, not float",
        ),
        ("folder", {"color": "yes", "data_dir": "."}, "color='yes' must be bool, not str"),
        ("digits", {"validation_size": 0.1}, "validation_size=0.1 must be int, not float"),
        ("synthetic", {"test_size": True}, "test_size=True must be int, not bool"),
        ("rotated_digits", {"padded_size": 12.0}, "padded_size=12.0 must be int, not float"),
        ("npz", {"file": 3}, "file=3 must be str, not int"),
    ],
)
def test_options_of_another_type_are_errors(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        inspect.unwrap(load_dataset)(name, **options)


def test_a_data_directory_does_not_disturb_sources_that_bring_their_data(tmp_path):
    dataset = load_dataset("digits", data_dir=tmp_path, validation_size=100)
    assert dataset.split_sizes == {"train": 1300, "validation": 100, "test": 397}


def test_importing_the_package_imports_no_data_library():
    program = "import sys, spa_jax.data; print(*sorted(m for m in sys.modules if '.' not in m))"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow_datasets", "grain", "sklearn", "PIL", "skimage", "tensorflow"} & set(modules)
