"""Prepared sets of TensorFlow Datasets: what they hold, and what is refused when they are damaged."""

import hashlib
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from i2x_jax.config import InputError
from i2x_jax.data import dataset as data
from i2x_jax.data import sources
from i2x_jax.data.pictures import Reading, prepared_array
from tests.helpers import one_line

DATA_DIR = os.environ.get("TFDS_DATA_DIR", "")


def prepared(name):
    """Skips a test where a set is not there."""
    folder = pathlib.Path(DATA_DIR, name)
    return pytest.mark.skipif(
        not DATA_DIR or not folder.is_dir(), reason=f"TFDS_DATA_DIR names no folder with {name} prepared"
    )


# Images of each class among the test images, as published.
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
# Of the uncompressed t10k-images-idx3-ubyte.
MNIST_TEST_MD5 = "2646ac647ad5339dbf082846283269ea"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def mnist():
    return data.load("mnist", "test", DATA_DIR)


@prepared("mnist")
class TestMnist:
    def test_images_labels_and_names(self, mnist):
        assert mnist.images.shape == (10_000, 28, 28, 1)
        assert (mnist.images.dtype, mnist.labels.dtype) == (np.uint8, np.int32)
        assert mnist.class_names == tuple("0123456789")
        assert np.bincount(mnist.labels).tolist() == MNIST_TEST

    def test_every_byte_is_that_of_the_original_file(self, mnist):
        hashing = pytest.importorskip("tensorflow_datasets.core.hashing")
        # TFDS stores samples in the order of a hash of their number.
        hasher = hashing.Hasher("test")
        places = sorted(range(len(mnist.labels)), key=hasher.hash_key)
        images, labels = np.empty_like(mnist.images), np.empty_like(mnist.labels)
        images[places], labels[places] = mnist.images, mnist.labels
        header = np.array([0x803, *images.shape[:3]], ">i4").tobytes()
        assert hashlib.md5(header + images.tobytes()).hexdigest() == MNIST_TEST_MD5
        assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]

    @pytest.mark.slow
    def test_the_training_split(self):
        train = data.load("mnist", "train", DATA_DIR)
        assert train.images.shape == (60_000, 28, 28, 1)
        assert np.bincount(train.labels).tolist() == MNIST_TRAIN


@prepared("cifar10")
def test_cifar10():
    test = data.load("cifar10", "test", DATA_DIR)
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.class_names == CIFAR10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # Colours are in their places: ships stand in blue, frogs do not.
    blueness = [np.subtract(*test.images[test.labels == label].mean((0, 1, 2))[[2, 0]]) for label in (8, 6)]
    assert blueness[0] > 0 > blueness[1]


# Of the copies that are read and damaged here; more than are read at once.
FEW = 1100


@pytest.fixture
def copied(tmp_path):
    """A copy of the prepared MNIST test images, of which the first few are declared; the folder of its one version."""
    source = next(path for path in pathlib.Path(DATA_DIR, "mnist").iterdir() if path.is_dir())
    target = tmp_path / "mnist" / source.name
    shutil.copytree(source, target, ignore=lambda _, names: [name for name in names if "-train." in name])
    changed(target / "dataset_info.json", lambda info: info["splits"][1].update(shardLengths=[str(FEW)]))
    return target


def changed(path, change):
    """Rewrites a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@prepared("mnist")
class TestReading:
    # Bytes of images of 28 x 28 x 1.
    NEEDED = FEW * 784

    def read(self, folder, **options):
        return sources.read_tfds("mnist", "test", str(folder.parent.parent), **options)

    def test_the_copy_is_the_start_of_the_set(self, copied, mnist):
        images, labels, names = self.read(copied)
        np.testing.assert_array_equal(images, mnist.images[:FEW])
        np.testing.assert_array_equal(labels, mnist.labels[:FEW])
        assert names == mnist.class_names

    def test_resizes_while_reading(self, copied, mnist):
        images, labels, _ = self.read(copied, how=Reading(size=14))
        assert images.shape == (FEW, 14, 14, 1)
        np.testing.assert_array_equal(labels, mnist.labels[:FEW])
        for row in (0, sources.READ_AT_ONCE - 1, sources.READ_AT_ONCE, FEW - 1):
            np.testing.assert_array_equal(images[row], prepared_array(mnist.images[row], Reading(size=14)))

    def test_a_set_that_does_not_fit_the_memory_is_refused_in_bytes(self, copied):
        with pytest.raises(InputError) as error:
            self.read(copied, budget=self.NEEDED - 1)
        line = one_line(error)
        assert "takes 862,400 bytes of memory as 1,100 images of 28x28x1; allowed: 862,399 bytes" in line
        assert "data.image_size" in line

    def test_a_set_that_fits_to_the_byte_is_read(self, copied):
        assert len(self.read(copied, budget=self.NEEDED)[0]) == FEW

    def test_the_size_wanted_counts(self, copied):
        with pytest.raises(InputError, match="takes 4,400,000,000 bytes of memory as 1,100 images of 2000x2000x1"):
            self.read(copied, how=Reading(size=2000), budget=10**9)
        assert len(self.read(copied, how=Reading(size=2), budget=4 * FEW)[0]) == FEW

    def test_half_of_the_memory_is_the_limit_unless_set(self, copied):
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        with pytest.raises(InputError, match=f"allowed: {half:,} bytes"):
            self.read(copied, how=Reading(size=10**6))


def refused(name, data_dir, split="test", image_size=0):
    with pytest.raises(InputError) as error:
        data.load(name, split, str(data_dir), Reading(size=image_size))
    return one_line(error)


class TestName:
    @pytest.mark.parametrize(("name", "meant"), [("mnits", "mnist"), ("cifar_10", "cifar10"), ("digit", "digits")])
    def test_a_slip_is_answered_with_what_was_meant(self, tmp_path, name, meant):
        line = refused(name, tmp_path)
        assert f"unknown data set {name!r}; allowed: digits" in line
        assert f"did you mean {meant}" in line

    @pytest.mark.parametrize("name", ["qqqqqqqq", "", "mnist:9.9.9", "../mnist", "mnist/none", "a b"])
    def test_whatever_is_no_set_is_refused(self, tmp_path, name):
        assert repr(name) in refused(name, tmp_path)
        assert not list(tmp_path.iterdir())


class TestWithoutTensorFlowDatasets:
    @pytest.fixture(autouse=True)
    def _missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    @pytest.mark.parametrize(
        "ask", [lambda name: data.load(name, "test", None), lambda name: sources.describe(name, None)]
    )
    def test_a_set_of_theirs_is_refused_with_the_mend(self, ask):
        with pytest.raises(InputError) as error:
            ask("mnist")
        line = one_line(error)
        assert "data set 'mnist' is read with TensorFlow Datasets, which is not installed" in line
        assert "allowed without it: digits, parts; pip install 'i2x_jax[tfds]'" in line

    def test_a_slip_is_still_told(self, tmp_path):
        assert "did you mean digits?" in refused("digit", tmp_path)

    def test_what_is_no_name_is_still_refused(self, tmp_path):
        assert "unknown data set '../mnist'" in refused("../mnist", tmp_path)

    def test_digits_do_without(self):
        assert len(data.load_splits("digits", 0.15).train.labels) == 1231


class TestNotPrepared:
    def assert_says_how(self, line, name, folder):
        assert f"data set {name!r} is not prepared in {folder}" in line
        assert "TFDS_DATA_DIR" in line
        assert f"tfds build {name} --file_format=array_record --data_dir={folder}" in line

    def test_an_empty_folder(self, tmp_path):
        self.assert_says_how(refused("mnist", tmp_path), "mnist", tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_missing(self, tmp_path):
        self.assert_says_how(refused("cifar10", tmp_path / "none"), "cifar10", tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_a_file_for_a_folder(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        assert "'mnist'" in refused("mnist", tmp_path / "file")

    @prepared("mnist")
    def test_another_version(self, tmp_path):
        shutil.copytree(pathlib.Path(DATA_DIR, "mnist", "3.0.1"), tmp_path / "mnist" / "1.0.0", ignore=no_records)
        assert "'mnist'" in refused("mnist", tmp_path)


def no_records(_, names):
    return [name for name in names if "array_record" in name]


@prepared("mnist")
class TestDamage:
    RECORD = "mnist-test.array_record-00000-of-00001"

    def test_another_file_format(self, copied, tmp_path):
        changed(copied / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
        line = refused("mnist", tmp_path)
        assert f"data set 'mnist' in {copied} is not stored as array_record" in line
        assert "tfds build mnist --file_format=array_record" in line

    def test_a_file_format_that_does_not_exist(self, copied, tmp_path):
        changed(copied / "dataset_info.json", lambda info: info.update(fileFormat="floppy"))
        assert "'mnist'" in refused("mnist", tmp_path)

    @pytest.mark.parametrize("share", [0, 0.5, 0.999])
    def test_a_truncated_shard(self, copied, tmp_path, share):
        os.truncate(copied / self.RECORD, int((copied / self.RECORD).stat().st_size * share))
        line = refused("mnist", tmp_path)
        assert f"data set 'mnist' in {copied} cannot be read (" in line
        assert "copy or prepare it again" in line

    def test_bytes_overwritten(self, copied, tmp_path):
        content = bytearray((copied / self.RECORD).read_bytes())
        content[10**5 : 10**5 + 4096] = bytes(4096)
        (copied / self.RECORD).write_bytes(content)
        assert f"data set 'mnist' in {copied} cannot be read (" in refused("mnist", tmp_path)

    def test_a_missing_shard(self, copied, tmp_path):
        (copied / self.RECORD).unlink()
        line = refused("mnist", tmp_path)
        assert f"data set 'mnist' in {copied} cannot be read (" in line
        assert self.RECORD in line

    @pytest.mark.parametrize("count", ["12000", "0", "-3", "many"])
    def test_another_number_of_samples_than_there_are(self, copied, tmp_path, count):
        changed(copied / "dataset_info.json", lambda info: info["splits"][1].update(shardLengths=[count]))
        assert "'mnist'" in refused("mnist", tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\0\1", '{"splits": 3}'])
    def test_a_damaged_description(self, copied, tmp_path, content):
        (copied / "dataset_info.json").write_text(content)
        line = refused("mnist", tmp_path)
        assert f"data set 'mnist' in {copied} cannot be read (" in line
        assert "dataset_info.json" in line
        assert "copy or prepare it again" in line

    def test_a_missing_description(self, copied, tmp_path):
        (copied / "dataset_info.json").unlink()
        assert "data set 'mnist' has no split 'test'" in refused("mnist", tmp_path)

    def test_a_split_that_is_missing(self, copied, tmp_path):
        changed(copied / "dataset_info.json", lambda info: info["splits"].pop(0))
        line = refused("mnist", tmp_path, split="train")
        assert "data set 'mnist' has no split 'train'; allowed: test;" in line


@prepared("mnist")
class TestSetOfOnesOwn:
    """A set that TFDS has no code for: what its images and labels are stands in features.json alone."""

    @pytest.fixture
    def own(self, copied, tmp_path):
        """A copy of MNIST under a name of its own."""
        target = tmp_path / "planted" / copied.name
        shutil.move(copied.parent, target.parent)
        for file in target.glob("mnist-*"):
            file.rename(target / file.name.replace("mnist", "planted"))
        changed(target / "dataset_info.json", lambda info: info.update(name="planted"))
        return target

    def with_features(self, own, change):
        changed(own / "features.json", lambda info: change(info["featuresDict"]["features"]))

    def test_it_is_read(self, own, mnist, tmp_path):
        np.testing.assert_array_equal(data.load("planted", "test", str(tmp_path)).images, mnist.images[:FEW])

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\0\1", '{"splits": 3, "featuresDict": 4}'])
    def test_a_damaged_description(self, own, tmp_path, name, content):
        (own / name).write_text(content)
        line = refused("planted", tmp_path)
        assert f"data set 'planted' in {own} cannot be read (" in line
        assert "complete dataset_info.json and features.json; copy or prepare it again" in line

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    def test_a_missing_description(self, own, tmp_path, name):
        (own / name).unlink()
        assert "data set 'planted'" in refused("planted", tmp_path)

    def test_images_of_several_sizes(self, own, tmp_path, mnist):
        shape = {"dimensions": ["-1", "-1", "1"]}
        self.with_features(own, lambda features: features["image"]["image"].update(shape=shape))
        line = refused("planted", tmp_path)
        assert "data set 'planted' has images of several sizes; allowed: one size; set data.image_size" in line
        resized = data.load("planted", "test", str(tmp_path), how=Reading(size=28))
        np.testing.assert_array_equal(resized.images, mnist.images[:FEW])

    def test_images_of_another_size_than_described(self, own, tmp_path):
        shape = {"dimensions": ["32", "32", "1"]}
        self.with_features(own, lambda features: features["image"]["image"].update(shape=shape))
        assert f"data set 'planted' in {own} cannot be read (" in refused("planted", tmp_path)

    @pytest.mark.parametrize(("gone", "counts"), [("label", (1, 0)), ("image", (0, 1))])
    def test_no_label_or_no_image(self, own, tmp_path, gone, counts):
        self.with_features(own, lambda features: features.pop(gone))
        line = refused("planted", tmp_path)
        assert f"has {counts[0]} images and {counts[1]} class labels a sample; allowed: one 8-bit image and one" in line

    def test_labels_beyond_the_classes(self, own, tmp_path):
        self.with_features(own, lambda features: features["label"]["classLabel"].update(numClasses="5"))
        line = refused("planted", tmp_path)
        assert f"data set 'planted' in {own}" in line
        assert "samples without a class in split 'test' (label " in line
        assert "allowed: 0 to 4" in line

    def test_a_class_named_in_a_description_is_not_run(self, own, tmp_path):
        self.with_features(own, lambda features: features["image"].update(pythonClassName="os.system"))
        assert f"data set 'planted' in {own} cannot be read (" in refused("planted", tmp_path)
