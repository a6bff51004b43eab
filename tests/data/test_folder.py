import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from spa_jax.data import eval_batches, load_dataset
from spa_jax.data.streaming import StreamedSplit
from spa_jax.errors import DataNotFoundError


@pytest.fixture
def image_folder(tmp_path):
    """Write `{relative path: pixels}` under a new directory and return it."""

    def write(files):
        for name, pixels in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return tmp_path

    return write


def flat(number, height=6, width=4):
    return np.full((height, width, 3), number, np.uint8)


def classes(prefix="", count=10, first=0):
    """`count` images each of the classes cat (even numbers) and dog (odd ones)."""
    return {
        f"{prefix}{('cat', 'dog')[number % 2]}/{number:03}.png": flat(number)
        for number in range(first, first + 2 * count)
    }


def numbers(split):
    return split.take(np.arange(len(split)))["image"][:, 0, 0, 0].astype(int)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_one_tree_is_split_by_class(image_folder, memory_limit):
    root = image_folder(classes(count=20))
    dataset = load_dataset("folder", data_dir=root, memory_limit=memory_limit)
    assert dataset.split_sizes == {"train": 29, "validation": 3, "test": 8}
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (6, 4, 3) and dataset.name == root.name
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sorted(np.concatenate([numbers(split) for split in splits])) == list(range(40))
    assert np.bincount(dataset.test.labels).tolist() == [4, 4]
    for split in splits:
        assert np.array_equal(numbers(split) % 2, split.labels)
        assert isinstance(split, StreamedSplit) == (memory_limit == 0)


def test_streamed_batches_equal_those_in_memory(image_folder):
    root = image_folder(classes(count=6))
    held, streamed = (load_dataset("folder", data_dir=root, memory_limit=limit).train for limit in (2**30, 0))
    for first, second in zip(eval_batches(held, 4), eval_batches(streamed, 4), strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], strict=True)


def test_own_splits_are_kept(image_folder):
    files = classes("train/", 5) | classes("test/", 2, first=100) | classes("validation/", 1, first=200)
    dataset = load_dataset("folder", data_dir=image_folder(files))
    assert dataset.split_sizes == {"train": 10, "validation": 2, "test": 4}
    assert sorted(numbers(dataset.test)) == [100, 101, 102, 103]


def test_the_seed_decides_the_validation_images(image_folder):
    root = image_folder(classes(count=20))
    first, again, other = (
        load_dataset("folder", data_dir=root, seed=seed, validation_size=10, test_size=10) for seed in (0, 0, 1)
    )
    assert np.array_equal(numbers(first.validation), numbers(again.validation))
    assert not np.array_equal(numbers(first.validation), numbers(other.validation))
    assert np.array_equal(numbers(first.test), numbers(other.test))


def test_resized_grey_images_of_both_kinds_in_deep_folders(image_folder):
    files = classes(count=4) | {"cat/more/x.jpg": flat(50, 30, 20), "dog/y.JPEG": flat(51, 9, 9)}
    (root := image_folder(files)).joinpath("dog", "notes.txt").write_text("not an image")
    dataset = load_dataset("folder", data_dir=root, image_size=(3, 5), color=False, validation_size=0, test_size=1)
    assert dataset.image_shape == (3, 5, 1)
    assert len(dataset.train) + len(dataset.test) == 10


def test_missing_directory(tmp_path):
    with pytest.raises(DataNotFoundError, match=f"looked in {tmp_path / 'no'}"):
        load_dataset("folder", data_dir=tmp_path / "no")
    with pytest.raises(DataNotFoundError, match="one for each class"):
        load_dataset("folder", data_dir=tmp_path)


def test_empty_class(image_folder):
    root = image_folder(classes())
    (root / "emu").mkdir()
    with pytest.raises(ValueError, match=r"class 'emu' is empty: .*emu has no \.png"):
        load_dataset("folder", data_dir=root)


def test_class_without_training_images(image_folder):
    root = image_folder(classes("train/") | classes("test/") | {"test/emu/1.png": flat(1)})
    with pytest.raises(ValueError, match="classes without training images: emu"):
        load_dataset("folder", data_dir=root)


def test_images_of_several_sizes_need_a_size(image_folder):
    root = image_folder(classes() | {"dog/tall.png": flat(1, height=7)})
    with pytest.raises(ValueError, match=r"image_size=None, but images vary in size.*tall.png is \(7, 4\)"):
        load_dataset("folder", data_dir=root)


@pytest.mark.parametrize("options", [{}, {"image_size": 4}])
def test_unreadable_file_is_named(image_folder, options):
    root = image_folder(classes())
    (root / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image .*dog/broken\.png"):
        load_dataset("folder", data_dir=root, **options)


def test_truncated_file_is_named_when_it_is_read(image_folder):
    root = image_folder(classes("train/", 3) | {"test/cat/half.png": flat(1), "test/dog/1.png": flat(1)})
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8))
    path = root / "test" / "cat" / "half.png"
    noise.save(path)
    path.write_bytes(path.read_bytes()[:70])
    dataset = load_dataset("folder", data_dir=root, memory_limit=0)
    with pytest.raises(ValueError, match=r"cannot read image .*half\.png"):
        list(eval_batches(dataset.test, 2))


# --- splits by other names, and files that are not images ----------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [("Train", "Test", None), ("Training", "Testing", None), ("train", "test", "val"), ("TRAIN", "test", "Valid")],
)
def test_splits_may_have_their_usual_names_in_any_case(image_folder, train, test, validation):
    files = classes(f"{train}/", 5) | classes(f"{test}/", 2, first=100)
    files |= classes(f"{validation}/", 1, first=200) if validation else {}
    dataset = load_dataset("folder", data_dir=image_folder(files))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.split_sizes == {"train": 10 - (not validation), "validation": 2 if validation else 1, "test": 4}
    assert sorted(numbers(dataset.test)) == [100, 101, 102, 103]
    assert not validation or sorted(numbers(dataset.validation)) == [200, 201]


@pytest.mark.parametrize(
    ("directories", "named"),
    [
        (("train", "Training"), "Training, train"),
        (("val", "valid", "train"), "train, val, valid"),
        (("test", "val"), "test, val"),
        (("train_set", "test_set"), "test_set, train_set"),
        (("seg_train", "seg_pred", "seg_test"), "seg_pred, seg_test, seg_train"),
    ],
)
def test_directories_that_only_look_like_splits_never_become_classes(image_folder, directories, named):
    root = image_folder({f"{name}/{kind}/0.png": flat(0) for name in directories for kind in ("cat", "dog")})
    with pytest.raises(ValueError, match=f"holds {named}, which look like splits; call one train"):
        load_dataset("folder", data_dir=root)


def test_a_class_may_be_called_like_a_split(image_folder):
    files = {f"{name}/{i}.png": flat(i) for name in ("bus", "train", "plane") for i in range(10)}
    assert load_dataset("folder", data_dir=image_folder(files)).class_names == ("bus", "plane", "train")


def test_splits_without_classes_are_not_classes(image_folder):
    root = image_folder({f"{split}/{i}.png": flat(i) for split in ("train", "test") for i in range(9)})
    with pytest.raises(DataNotFoundError, match="train has no directory; there must be one for each class"):
        load_dataset("folder", data_dir=root)


def test_directories_beside_the_splits_are_named(image_folder, caplog):
    root = image_folder(classes("train/") | classes("extra/"))
    assert load_dataset("folder", data_dir=root).class_names == ("cat", "dog")
    assert [record.getMessage() for record in caplog.records] == [f"{root}: not read are the directories extra"]


def test_hidden_files_are_no_images(image_folder, caplog):
    hidden = ["cat/.ipynb_checkpoints/000-checkpoint.png", ".cache/x.png", "__MACOSX/cat/._000.png"]
    root = image_folder(classes(count=5) | {name: flat(0) for name in hidden})
    (root / "dog" / "._000.png").write_bytes(b"resource fork")
    (root / "dog" / ".DS_Store").write_bytes(b"")
    dataset = load_dataset("folder", data_dir=root, validation_size=0, test_size=1)
    assert dataset.class_names == ("cat", "dog") and len(dataset.train) + len(dataset.test) == 10
    assert not caplog.records


def test_files_of_other_formats_are_counted_aloud(image_folder, caplog):
    root = image_folder(classes(count=5))
    for name in ("cat/a.gif", "cat/more/b.GIF", "dog/notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    load_dataset("folder", data_dir=root)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"{root}: not read are 2 .gif, 1 .txt files; read are .png, .jpg, .jpeg, .bmp, .webp"


def test_bmp_and_webp_are_read(image_folder):
    files = {f"{name}/{i}.{kind}": flat(40 * i) for name in ("a", "b") for i in range(3) for kind in ("bmp", "WEBP")}
    dataset = load_dataset("folder", data_dir=image_folder(files), validation_size=0, test_size=2)
    found = np.concatenate([numbers(dataset.train), numbers(dataset.test)])
    np.testing.assert_allclose(np.sort(found), np.repeat([0, 40, 80], 4), atol=2)


def test_the_size_of_images_on_their_side_is_that_of_upright_ones(image_folder):
    root = image_folder(classes(count=5))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(flat(0, height=4, width=6)).save(root / "cat" / "side.jpg", exif=exif)
    assert load_dataset("folder", data_dir=root).image_shape == (6, 4, 3)


def test_an_image_of_too_many_pixels_is_named(image_folder):
    root = image_folder(classes())
    (root / "dog" / "bomb.png").write_bytes(png_header(20_000, 20_000))
    for size in (None, 4):
        with pytest.raises(ValueError, match=r"^cannot read image .*bomb\.png: .*400000000 pixels[^\n]*$"):
            load_dataset("folder", data_dir=root, image_size=size)


def png_header(width, height):
    """A PNG that promises pixels and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks
