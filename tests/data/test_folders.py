"""Folders and CSV files of pictures: what is listed, in which order, and 30 hostile ones, each refused in a line."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from i2x_jax.config import InputError
from i2x_jax.data import dataset as data
from i2x_jax.data import folders, reading, sources
from i2x_jax.data.pictures import Reading
from tests.helpers import one_line

STRANGE = ("a, b", 'say "no"', "Ünï cødé", "猫", "-x")


def image_of(number, colour=False):
    """A picture that no other is like."""
    shape = (6, 6, 3) if colour else (6, 6)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8))


def fill(folder, classes=("cat", "dog"), count=12, first=0, **options):
    """Pictures 0.png, 1.png, ... in the folder of each class."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image_of(first + place * count + number, **options).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def split_folder(tmp_path):
    """12 pictures of each of two classes to train on, 2 to validate and 3 to test."""
    root = tmp_path / "pets"
    for first, (split, count) in enumerate((("train", 12), ("validation", 2), ("test", 3))):
        fill(root / split, count=count, first=100 * first)
    return root


def loaded(root, **options):
    return data.load_splits(f"folder:{root}", 0.2, **options)


class TestFolder:
    def test_splits_are_the_folders(self, split_folder):
        splits = loaded(split_folder)
        assert [len(each.labels) for each in splits[:3]] == [24, 4, 6]
        assert splits.train.class_names == ("cat", "dog")
        assert splits.train.images.shape == (24, 6, 6, 1)
        for split in ("train", "validation", "test"):
            dataset = getattr(splits, split)
            for row, path in enumerate(dataset.images.files.paths):
                assert path.split("/")[:2] == [split, dataset.class_names[dataset.labels[row]]]
                np.testing.assert_array_equal(dataset.images[row][..., 0], np.asarray(Image.open(split_folder / path)))

    def test_order_is_of_names_and_then_of_classes(self, tmp_path):
        fill(tmp_path, count=2)
        part = folders.listing(f"folder:{tmp_path}").parts["train"]
        assert part.paths == ["cat/00.png", "dog/00.png", "cat/01.png", "dog/01.png"]
        assert part.labels.tolist() == [0, 1, 0, 1]

    def test_what_is_missing_is_split_off_training(self, tmp_path):
        fill(tmp_path, count=20)
        one, other = loaded(tmp_path, seed=1), loaded(tmp_path, seed=2)
        assert [len(each.labels) for each in one[:3]] == [26, 6, 8]
        # The test set is the same for every seed of a run.
        assert data.fingerprint(one.test) == data.fingerprint(other.test)
        assert data.fingerprint(one.validation) != data.fingerprint(other.validation)

    def test_classes_have_any_names(self, tmp_path):
        fill(tmp_path, classes=STRANGE, count=15)
        assert loaded(tmp_path).train.class_names == tuple(sorted(STRANGE))

    def test_hidden_and_other_files_are_passed_over_and_folders_in_classes_are_not(self, tmp_path):
        fill(tmp_path, count=3)
        (tmp_path / "cat" / ".hidden.png").write_text("no")
        (tmp_path / "cat" / "notes.txt").write_text("no")
        (tmp_path / ".cache").mkdir()
        (tmp_path / "dog" / "more" / "and more").mkdir(parents=True)
        image_of(77).save(tmp_path / "dog" / "more" / "and more" / "x.PNG")
        found = folders.listing(f"folder:{tmp_path}")
        assert found.class_names == ("cat", "dog")
        assert len(found.parts["train"].paths) == 7
        assert "dog/more/and more/x.PNG" in found.parts["train"].paths

    def test_links_are_followed_inside_and_not_out(self, tmp_path):
        fill(tmp_path / "in", count=2)
        image_of(5).save(tmp_path / "secret.png")
        (tmp_path / "in" / "cat" / "inside.png").symlink_to(tmp_path / "in" / "dog" / "00.png")
        (tmp_path / "in" / "cat" / "outside.png").symlink_to(tmp_path / "secret.png")
        found = folders.listing(f"folder:{tmp_path / 'in'}")
        assert "cat/inside.png" in found.parts["train"].paths
        assert found.unusable == [("cat/outside.png", "is a link that leads out of the folder")]

    def test_colour_anywhere_makes_all_rgb(self, split_folder):
        image_of(900, colour=True).save(split_folder / "train" / "cat" / "00.png")
        assert loaded(split_folder).train.images.shape == (24, 6, 6, 3)
        assert loaded(split_folder, how=Reading(channels=1)).train.images.shape == (24, 6, 6, 1)

    def test_only_test_pictures_serve_as_audit_set_and_not_to_train(self, tmp_path):
        fill(tmp_path / "test", count=2)
        assert len(data.load(f"folder:{tmp_path}", "test").labels) == 4
        with pytest.raises(InputError, match="has no pictures of split 'train'"):
            loaded(tmp_path)

    def test_equal_files_never_straddle(self, tmp_path):
        fill(tmp_path, count=30)
        for number in range(15):
            shutil.copy(tmp_path / "cat" / f"{number:02d}.png", tmp_path / "cat" / f"copy-{number:02d}.png")
        splits = loaded(tmp_path)
        prints = [set(each.images.files.digests()) for each in splits[:3]]
        assert len(prints[0] | prints[1] | prints[2]) == sum(map(len, prints)) == 60


class TestCsv:
    def write(self, root, rows, name="list.csv"):
        with (root / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return f"csv:{root / name}"

    def test_is_the_folder_in_the_order_of_its_rows(self, split_folder):
        whole = loaded(split_folder)
        rows = [
            (path, dataset.class_names[label], split)
            for split, dataset in (("val", whole.validation), ("", whole.train), ("test", whole.test))
            for path, label in zip(dataset.images.files.paths, dataset.labels, strict=True)
        ]
        splits = data.load_splits(self.write(split_folder, [("path", "label", "split"), *rows]), 0.2)
        for one, other in zip(splits[:3], whole[:3], strict=True):
            np.testing.assert_array_equal(one.images[:], other.images[:])
            np.testing.assert_array_equal(one.labels, other.labels)
            assert data.fingerprint(one) == data.fingerprint(other)

    def test_names_hold_anything(self, tmp_path):
        fill(tmp_path, classes=STRANGE, count=1)
        rows = [(f"{name}/00.png", name) for name in STRANGE]
        found = folders.listing(self.write(tmp_path, rows))
        assert found.class_names == tuple(sorted(STRANGE))
        assert found.parts["train"].paths == [path for path, _ in rows]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("", "names no pictures"),
            ("path,label\n", "names no pictures"),
            ("a.png\n", "line 1, is ['a.png']"),
            ("a.png,cat\nb.png,,train\n", "line 2, is ['b.png', '', 'train']"),
            ("a.png,cat,train,4\n", "line 1, is ['a.png', 'cat', 'train', '4']"),
            ("a.png,cat,dev\n", "line 1, has the split 'dev'; allowed: train"),
            ("a.png,cat\n./a.png,dog\n", "line 2, names './a.png' again"),
            ('a.png,"cat\n', "cannot be read (unexpected end of data)"),
            (b"a.png,\xff\xfe\n", "cannot be read ('utf-8' codec"),
            ("../a.png,cat\n", "a.png is not below the folder of list.csv"),
            ("/etc/hostname,cat\n", "/etc/hostname is not below the folder of list.csv"),
            ("missing.png,cat\n", "missing.png cannot be opened (No such file or directory)"),
            ("sub,cat\n", "sub cannot be opened (Is a directory)"),
            ("a\0.png,cat\n", "cannot be opened (embedded null byte)"),
        ],
    )
    def test_refused(self, tmp_path, text, line):
        (tmp_path / "sub").mkdir()
        (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError) as error:
            data.load_splits(f"csv:{tmp_path / 'list.csv'}", 0.2)
        assert line in one_line(error)
        assert "allowed: " in one_line(error)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\); allowed: a CSV file"):
            data.load("csv:nowhere.csv", "train")


def gone(root):
    shutil.rmtree(root)


def emptied(root):
    shutil.rmtree(root)
    root.mkdir()


def a_file(root):
    shutil.rmtree(root)
    root.write_text("no folder")


def beside(root):
    (root / "wolf").mkdir()


def two_for_one(root):
    (root / "val").mkdir()


def in_no_class(root):
    image_of(1).save(root / "train" / "stray.png")


def at_the_top(root):
    image_of(1).save(root / "stray.jpg")


def unknown_class(root):
    fill(root / "test", classes=("wolf",), count=1)


def other_code_points(root):
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        (root / split / name).mkdir()


def bytes_for_a_name(root):
    os.mkdir(os.fsencode(root / "train") + b"/\xff")


def one_class(root):
    for split in ("train", "validation", "test"):
        shutil.rmtree(root / split / "dog")


def class_without(root):
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


def another_size(root):
    image_of(1).resize((7, 9)).save(root / "train" / "cat" / "00.png")


def broken(root):
    (root / "train" / "cat" / "00.png").write_bytes((root / "train" / "cat" / "00.png").read_bytes()[:50])


def text(root):
    (root / "train" / "cat" / "00.png").write_text("a pet")


def nothing(root):
    (root / "test" / "dog" / "00.png").write_bytes(b"")


def moving(root):
    image_of(1).save(root / "test" / "dog" / "00.gif", save_all=True, append_images=[image_of(2)])


def not_read(root):
    (root / "train" / "cat" / "photo.HEIC").write_text("x")


def leading_out(root):
    (root / "train" / "cat" / "00.png").unlink()
    (root / "train" / "cat" / "00.png").symlink_to("/etc/hostname")


def leading_nowhere(root):
    (root / "train" / "cat" / "x.png").symlink_to(root / "nothing.png")


def in_a_circle(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train")


def class_elsewhere(root):
    shutil.move(root / "train" / "dog", root.parent / "dog")
    (root / "train" / "dog").symlink_to(root.parent / "dog")


def a_pipe(root):
    os.mkfifo(root / "train" / "cat" / "pipe.png")


HOSTILE = {
    "gone": (gone, "which is none; allowed: DIR/"),
    "empty": (emptied, "holds no pictures; allowed: DIR/"),
    "a file": (a_file, "which is none; allowed: DIR/"),
    "a class beside splits": (beside, "has the folder 'wolf' beside"),
    "validation twice": (two_for_one, "has two folders for one split: "),
    "a picture in no class": (in_no_class, "train/stray.png is in no folder of a class"),
    "a picture at the top": (at_the_top, "stray.jpg is in no folder of a class"),
    "a class to test alone": (unknown_class, "has the class 'wolf' in test, but not in train"),
    "other code points": (other_code_points, "it is written with other code points there"),
    "a name in no Unicode": (bytes_for_a_name, "a name in Unicode; rename it"),
    "one class": (one_class, "the data set has 1 class; allowed: at least 2"),
    "a class without pictures": (class_without, "class 'dog' has 0 train samples; allowed: at least 10"),
    "several sizes": (another_size, "has pictures of several sizes, as "),
}
# What data.skip_broken leaves out.
BROKEN = {
    "half a picture": (broken, "train/cat/00.png cannot be decoded ("),
    "text": (text, "train/cat/00.png is no picture of a kind that is read"),
    "an empty file": (nothing, "test/dog/00.png is empty"),
    "a moving picture": (moving, "test/dog/00.gif has 2 frames, where one is allowed"),
    "a kind that is not read": (not_read, "train/cat/photo.HEIC is a picture of a kind that is not read"),
    "a link out": (leading_out, "train/cat/00.png is a link that leads out of the folder"),
    "a link to nothing": (leading_nowhere, "train/cat/x.png cannot be opened (No such file or directory)"),
    "a circle": (in_a_circle, "train/cat/again is a link to a folder"),
    "a pipe": (a_pipe, "train/cat/pipe.png is no file"),
}


def everything(root):
    """Names, kinds and contents of all that is below a folder."""
    return {
        os.path.relpath(path, root): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in root.rglob("*")
    }


@pytest.mark.parametrize(("spoil", "line"), (HOSTILE | BROKEN).values(), ids=HOSTILE | BROKEN)
def test_hostile_folders_are_refused_in_a_line_and_left_as_they_are(split_folder, spoil, line):
    spoil(split_folder)
    before = everything(split_folder)
    with pytest.raises(InputError) as error:
        loaded(split_folder)
    assert line in one_line(error)
    assert "; allowed: " in one_line(error)
    assert everything(split_folder) == before


@pytest.mark.parametrize(("spoil", "line"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_may_be_left_out(split_folder, spoil, line):
    spoil(split_folder)
    splits = loaded(split_folder, how=Reading(skip_broken=True))
    ((path, reason),) = splits.train.images.files.left_out
    assert line in f"{path} {reason}"
    for dataset in splits[:3]:
        assert path not in dataset.images.files.paths
        assert len(dataset.images[:]) == len(dataset.labels) == len(dataset.images.files.paths)
        for row, name in enumerate(dataset.images.files.paths):
            assert name.split("/")[1] == dataset.class_names[dataset.labels[row]]


def test_a_class_that_is_a_link_out_is_refused(split_folder):
    class_elsewhere(split_folder)
    with pytest.raises(InputError, match="train/dog is a link that leads out of the folder; allowed: "):
        loaded(split_folder)


def test_no_folder_at_all():
    with pytest.raises(InputError, match="names the folder '', which is none"):
        data.load("folder:", "train")


class TestReading:
    """Pixels by row: kept in memory, or decoded whenever they are read."""

    @pytest.fixture
    def both(self, split_folder, monkeypatch):
        kept = loaded(split_folder).train
        monkeypatch.setattr(sources, "MEMORY_SHARE", 0)
        return kept, loaded(split_folder).train

    @pytest.mark.parametrize(
        "rows",
        [
            slice(None),
            slice(3, 20, 4),
            slice(-3, None),
            np.array([5, 1, 5, 0]),
            np.array([], int),
            np.arange(24) % 2 == 0,
            7,
            np.array([[0, 1], [2, 3]]),
        ],
    )
    def test_both_are_the_array(self, both, rows):
        kept, decoded = both
        array = np.stack([kept.images[row] for row in range(24)])
        for each in (kept, decoded, kept):
            np.testing.assert_array_equal(each.images[rows], array[rows])
        assert data.fingerprint(kept) == data.fingerprint(decoded)

    def test_batches_are_the_same(self, both):
        for one, other in zip(*(data.batches(each, 7) for each in both), strict=True):
            for left, right in zip(one, other, strict=True):
                np.testing.assert_array_equal(left, right)

    def test_a_file_that_changes_while_it_is_read_is_noticed(self, both):
        _, decoded = both
        path = decoded.images.files.path(4)
        image_of(999).save(path)
        decoded.images[np.arange(4)]
        with pytest.raises(InputError) as error:
            decoded.images[np.arange(6)]
        assert f"{path} has changed, but was looked at before; allowed: " in one_line(error)

    def test_more_threads_change_nothing(self, both, monkeypatch):
        kept, decoded = both
        monkeypatch.setattr(reading, "threads", lambda: 7)
        np.testing.assert_array_equal(decoded.images[:], kept.images[:])


class TestKnown:
    """What a run keeps of files, so that they are not decoded to be known again."""

    @pytest.fixture
    def path(self, split_folder, tmp_path):
        path = str(tmp_path / "pictures.npy")
        files = [each.images.files for each in loaded(split_folder)[:3]]
        np.save(path, reading.known_of(files))
        return path

    def looked_at(self, monkeypatch, split_folder, path):
        seen = []
        look = reading.look
        monkeypatch.setattr(
            reading, "look", lambda path: (seen.append(os.path.relpath(path, split_folder)), look(path))[1]
        )
        return loaded(split_folder, how=Reading(known=path)), sorted(seen)

    def test_only_what_changed_is_decoded(self, split_folder, path, monkeypatch):
        before = loaded(split_folder)
        same, seen = self.looked_at(monkeypatch, split_folder, path)
        assert seen == []
        assert data.fingerprint(same.train) == data.fingerprint(before.train)
        image_of(901).save(split_folder / "train" / "cat" / "03.png")
        image_of(902).save(split_folder / "train" / "dog" / "99.png")
        changed, seen = self.looked_at(monkeypatch, split_folder, path)
        assert seen == ["train/cat/03.png", "train/dog/99.png"]
        assert data.fingerprint(changed.train) != data.fingerprint(before.train)
        (split_folder / "test" / "dog" / "00.png").unlink()
        files = [each.images.files for each in loaded(split_folder)[:3]]
        said = reading.changes(reading.read_known(path), files)
        assert said == "1 changed, as train/cat/03.png; 1 new, as train/dog/99.png; 1 gone"

    @pytest.mark.parametrize("what", ["nothing", "text", "another array", "a link", "objects"])
    def test_what_is_no_help_is_of_no_account(self, split_folder, path, tmp_path, monkeypatch, what):
        if what == "a link":
            shutil.move(path, tmp_path / "elsewhere.npy")
            os.symlink(tmp_path / "elsewhere.npy", path)
        elif what == "nothing":
            os.unlink(path)
        elif what == "text":
            (tmp_path / "pictures.npy").write_text("known")
        else:
            np.save(path, np.arange(3) if what == "another array" else np.array([{}], object))
        _, seen = self.looked_at(monkeypatch, split_folder, path)
        assert len(seen) == 34
