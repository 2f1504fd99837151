"""Sources: what each reads, what each refuses, and the counts of the published lists."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from support.helpers import slow_after

from videossl_core import params
from videossl_core.data import datasets, splits
from videossl_core.data.datasets import DatasetError

UCF_LISTS = {
    "classInd.txt": "1 Archery\r\n2 Biking\r\n\r\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\r\nArchery/v_Archery_g08_c02.avi 1\r\n"
    "Biking/v_Biking_g08_c01.avi 2\r\n",
    "testlist01.txt": "Archery/v_Archery_g01_c01.avi\r\nBiking/v_Biking_g01_c01.avi\r\n",
}


def write(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, newline="")
    return folder


def read(source: str, root: Path, **given) -> datasets.Index:
    return datasets.read_index(params.load(dataset="some", source=source, root=root, **given))


def empty_files(root: Path, *names: str) -> Path:
    return write(root, dict.fromkeys(names, ""))


@pytest.fixture
def ucf(tmp_path):
    lists = write(tmp_path / "lists", UCF_LISTS)
    (tmp_path / "videos/Archery").mkdir(parents=True)
    (tmp_path / "videos/Biking").mkdir()
    return lambda **given: read("ucf101", tmp_path / "videos", **{"lists": lists} | given)


def test_ucf101(ucf):
    index = ucf()
    assert index.classes == ["Archery", "Biking"]
    assert list(index.table.video)[:2] == ["Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g08_c01.avi"]
    assert list(index.table.split) == ["test", "train", "train", "test", "train"]
    assert list(index.table.label) == [0, 0, 0, 1, 1]


def test_chosen_classes(ucf):
    index = ucf(classes=["Biking"])
    assert (index.classes, index.all_classes) == (["Biking"], ["Archery", "Biking"])
    assert set(index.table.label) == {0}
    with pytest.raises(DatasetError, match="'Bikking' is not a class"):
        ucf(classes="Bikking")
    with pytest.raises(DatasetError, match="named twice"):
        ucf(classes="Biking,Biking")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("trainlist01.txt", "c02.avi 1", "c02.avi 2", "trainlist01.txt line 2: .*with its id"),
        ("trainlist01.txt", "c02.avi 1", "c02.avi", "trainlist01.txt line 2"),
        ("testlist01.txt", "Biking/", "Cooking/", "testlist01.txt line 2: 'Cooking/"),
        ("classInd.txt", "2 Biking", "3 Biking", "classInd.txt line 2: .*'2 ClassName'"),
        ("testlist01.txt", "Biking/v_Biking_g01_c01", "Biking/v_Biking_g08_c01", "listed twice"),
        ("testlist01.txt", "Archery/v_", "../Archery/v_", "must lie below the root"),
    ],
)
def test_wrong_line_named(ucf, tmp_path, name, old, new, message):
    path = tmp_path / "lists" / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        ucf()


def test_missing_files_named(ucf, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: no such folder .*ucfTrainTestlist"):
        ucf(lists=tmp_path / "nowhere")
    (tmp_path / "lists/testlist01.txt").rename(tmp_path / "lists/gone.txt")
    with pytest.raises(FileNotFoundError, match=r"No such file.*testlist01.txt"):
        ucf()
    (tmp_path / "lists/gone.txt").rename(tmp_path / "lists/testlist01.txt")
    (tmp_path / "videos/Biking").rmdir()
    with pytest.raises(DatasetError, match=r"such as Biking. To use the others: classes = Archery"):
        ucf()
    with pytest.raises(DatasetError, match="no such folder"):
        read("ucf101", tmp_path / "no", lists=tmp_path / "lists")


def test_hmdb51_pools(tmp_path):
    texts = {
        "chew_test_split1.txt": "a b!_chew.avi 1 \nc.avi 2 \nd.avi 0 \n",
        "kick_ball_test_split1.txt": "e.avi 1\nf.avi 2\n",
        "class_list.txt": "chew\n",
    }
    lists = write(tmp_path / "lists", texts)
    root = empty_files(tmp_path / "videos", "chew/x.avi", "kick_ball/x.avi")
    wide = read("hmdb51", root, lists=lists).table
    assert list(wide.video[wide.split == "train"]) == ["chew/a b!_chew.avi", "chew/d.avi", "kick_ball/e.avi"]
    assert list(wide.video[wide.split == "test"]) == ["chew/c.avi", "kick_ball/f.avi"]
    official = read("hmdb51", root, lists=lists, hmdb51_pool="official")
    assert "chew/d.avi" not in set(official.table.video)
    (lists / "chew_test_split1.txt").write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(DatasetError, match=r"line 2: 'b.avi 3' is not"):
        read("hmdb51", root, lists=lists)


def test_kinetics(tmp_path):
    files = {
        "Train/ski jumping/a_000001_000011.mp4": "ski jumping,a,1,11,train",
        "Train/skiing (x)/b_000002_000012.mp4": "skiing (x),b,2,12,train",
        "Train/skiing (x)/c_000003_000013.mp4": "skiing (x),c,3,13,train",
        "Val/ski jumping/d_000004_000014.mp4": "ski jumping,d,4,14,validate",
        "Val/skiing (x)/e_000005_000015.mp4": "skiing (x),e,5,15,validate",
    }
    root = empty_files(tmp_path / "k", *files, "Val/skiing (x)/notes.txt")
    index = read("kinetics", root)
    assert index.classes == ["skiing (x)", "ski jumping"]  # by letters, as the authors number them
    assert sorted(index.table.video) == sorted(files)

    def listed(*more: str) -> datasets.Index:
        rows = ["label,youtube_id,time_start,time_end,split", *files.values(), *more]
        return read("kinetics", root, lists=write(tmp_path / "lists", {"all.csv": "\n".join(rows)}))

    pd.testing.assert_frame_equal(listed().table, index.table)
    empty_files(root, "test/ski jumping/f_000006_000016.mp4")  # the paper tests on the validation videos
    with pytest.warns(UserWarning, match="tested on val; test is left out"):
        pd.testing.assert_frame_equal(read("kinetics", root).table, index.table)
    with pytest.warns(UserWarning, match="tested on val; test is left out"):
        pd.testing.assert_frame_equal(listed("ski jumping,f,6,16,test").table, index.table)
    with pytest.raises(DatasetError, match=r"line 7: split 'tset' is not train, validate or test"):
        listed("ski jumping,f,6,16,tset")
    shutil.rmtree(root / "test")
    assert read("kinetics", root, largest_classes=1).classes == ["skiing (x)"]
    write(tmp_path / "lists", {"all.csv": "label,id\nx,y\n"})
    with pytest.raises(DatasetError, match="no column youtube_id"):
        read("kinetics", root, lists=tmp_path / "lists")


def test_folder_with_and_without_split(tmp_path):
    with pytest.raises(DatasetError, match="no train video of any class found below"):
        read("folder", tmp_path)
    root = empty_files(tmp_path / "a", *(f"{c}/{i} ü,'.MP4" for c in ("cat", "dog") for i in range(8)))
    table = read("folder", root, test_pct=25).table
    sizes = table.groupby(["class_name", "split"]).size().unstack()
    assert sizes.to_dict("index") == {name: {"test": 2, "train": 6} for name in ("cat", "dog")}
    again = read("folder", root, test_pct=25, seed=5).table
    pd.testing.assert_frame_equal(again, table)  # all runs share one test split
    split = empty_files(tmp_path / "b", "train/cat/1.mp4", "test/cat/2.mkv")
    assert list(read("folder", split).table.split) == ["test", "train"]
    empty_files(split, "val/cat/3.mkv")
    with pytest.warns(UserWarning, match="tested on test; val is left out"):
        assert list(read("folder", split).table.video) == ["test/cat/2.mkv", "train/cat/1.mp4"]


def test_names_no_list_can_hold(tmp_path):
    root = empty_files(tmp_path, *(f"{c}/{i}.mp4" for c in "ab" for i in range(3)))
    read("folder", root)
    for bad in (b"a/new\nline.mp4", b"b/latin\xe9.mp4"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), bad)))
        path.touch()
        with pytest.raises(DatasetError, match=r"(new.nline|latin.udce9).*rename it"):
            read("folder", root)
        path.unlink()


def test_circular_links(tmp_path):
    """Folders that are linked in a circle are walked once; hidden files are not seen."""
    names = ["a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"]
    root, elsewhere = empty_files(tmp_path / "videos", *names, "b/.hidden.mp4"), tmp_path / "elsewhere"
    empty_files(elsewhere, "deep/3.mp4")
    (root / "a/round").symlink_to(root / "a")
    (root / "a/up").symlink_to(root)
    (root / "b/other").symlink_to(elsewhere)
    (elsewhere / "deep/back").symlink_to(elsewhere)
    videos = list(read("folder", root).table.video)
    assert {*names, "b/other/deep/3.mp4"} <= set(videos)
    assert len(videos) < 12
    assert not any(".hidden" in video for video in videos)


def test_csv(tmp_path):
    root = empty_files(tmp_path / "v", "x/1.mp4")
    text = "video,label,split\nx/1.mp4,a,train\nx/2.mp4,a,test\nx/3.mp4,b,train\n"
    table = write(tmp_path, {"t.csv": text}) / "t.csv"
    assert list(read("csv", root, lists=table).table.split) == ["train", "test", "train"]
    table.write_text("video,label,split\nx/1.mp4,a,train\nx/2.mp4,,test\n")
    with pytest.raises(DatasetError, match=r"t.csv line 3"):
        read("csv", root, lists=table)
    with pytest.raises(DatasetError, match="needs lists"):
        read("csv", root)


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/../../x.mp4", "..\\..\\x.mp4", "C:\\x.mp4", ".", "//x/y.mp4"]


@pytest.mark.parametrize("entry", OUTSIDE)
def test_entry_outside_root(tmp_path, entry):
    """Refused; an absolute path below the root is fine."""
    root, lists = empty_files(tmp_path / "v", "a/1.mp4", "b/1.mp4"), tmp_path / "t.csv"
    lists.write_text(f"video,label,split\na/1.mp4,a,train\n{root}/b/1.mp4,b,test\n")
    assert list(read("csv", root, lists=lists).table.video) == ["a/1.mp4", "b/1.mp4"]
    with open(lists, "a") as f:
        f.write(f"{entry},a,train\n")
    with pytest.raises(DatasetError, match="must lie below the root folder"):
        read("csv", root, lists=lists)


# The published lists themselves, where the machine has them.


@pytest.fixture
def folders_of(tmp_path):
    """An empty folder for each class, all that reading an index needs of the videos."""

    def make(names) -> Path:
        for name in names:
            (tmp_path / "root" / name).mkdir(parents=True, exist_ok=True)
        return tmp_path / "root"

    return make


@pytest.fixture
def ucf101(published_lists, folders_of):
    """Parameters for the official lists and the authors' label lists of UCF101."""
    lists = published_lists / "ucfTrainTestlist"
    root = folders_of(line.split()[1] for line in (lists / "classInd.txt").read_text().splitlines() if line)
    authors = published_lists / "videossl/ucf101"
    return {"dataset": "ucf101", "root": root, "lists": lists, "label_list": authors}


def counts(split: pd.DataFrame) -> dict[str, int]:
    return split.role.value_counts().to_dict()


@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101_counts(ucf101, split, train, test):
    table = datasets.read_index(params.load(**ucf101, split=split)).table
    assert table.split.value_counts().to_dict() == {"train": train, "test": test}


def test_tuning_groups(ucf101):
    """Settings are chosen on groups of the training videos, never on official test videos."""
    p = params.load(**ucf101, tune=True, label_draw="uniform")
    index = datasets.read_index(p)
    usual = index.table.set_index("video").split
    tuning = splits.make_split(p, index)
    assert set(tuning.video) == set(usual.index[usual == "train"])
    tuning["group"] = tuning.class_name + tuning.video.str.extract(r"_(g\d\d)_")[0]
    train, test = (set(tuning.group[(tuning.role == "test") == held_out]) for held_out in (False, True))
    assert len(test) == 4 * 101
    assert not train & test
    numbers = {group[-3:] for group in train}, {group[-3:] for group in test}
    assert max(numbers[0]) < min(numbers[1])


@pytest.mark.parametrize(
    ("pct", "labelled", "of_six"),
    slow_after(1, [(10, 953, 66), (5, 476, 21), (20, 1907, 123), (50, 4768, 264)]),
)
def test_authors_lists_ucf101(ucf101, pct, labelled, of_six):
    p = params.load(**ucf101, label_pct=pct)
    index = datasets.read_index(p)
    split = splits.make_split(p, index)
    assert counts(split) == {"labelled": labelled, "unlabelled": 9537 - labelled, "test": 3783}
    without = set(index.classes) - set(split.class_name[split.role == "labelled"])
    assert without == ({"CliffDiving"} if pct == 5 else set())
    p = params.load(**ucf101 | {"dataset": "ucf101_6", "label_pct": pct, "label_draw": "list"})
    split = splits.make_split(p, datasets.read_index(p))
    assert counts(split) == {"labelled": of_six, "unlabelled": 529 - of_six, "test": 202}


@pytest.mark.parametrize(("pct", "labelled"), slow_after(1, [(40, 2094), (50, 2618), (60, 3141)]))
def test_authors_lists_hmdb51(published_lists, folders_of, pct, labelled):
    lists = published_lists / "testTrainMulti_7030_splits"
    root = folders_of(f.name.removesuffix("_test_split1.txt") for f in lists.glob("*_test_split1.txt"))
    given = {"dataset": "hmdb51", "root": root, "lists": lists}
    p = params.load(**given, label_list=published_lists / "videossl/hmdb51", label_pct=pct)
    index = datasets.read_index(p)
    assert len(index.classes) == 51
    split = splits.make_split(p, index)
    assert counts(split) == {"labelled": labelled, "unlabelled": 5236 - labelled, "test": 1530}
    official = params.load(**given, hmdb51_pool="official", label_draw="uniform")
    assert (datasets.read_index(official).table.split == "train").sum() == 3570


def authors_kinetics(lists: Path, *names: str) -> list[str]:
    """Videos of the authors' lists: subset/class/name."""
    texts = [(lists / f"videossl/kinetics/ssl_sub{name}.lst").read_text() for name in names]
    return [line.rpartition("*")[0] for text in texts for line in text.split("\n") if line]


def kinetics_table(folders_of, lists: Path, videos: list[str]) -> dict:
    """Parameters that read these videos, subset/class/name, from a table."""
    table = pd.DataFrame({"video": videos, "label": [video.split("/")[1] for video in videos]})
    table["split"] = ["train" if video.startswith("Train/") else "test" for video in videos]
    root = folders_of({Path(video).parent for video in videos})
    table.to_csv(root.parent / "all.csv", index=False)
    given = {"source": "csv", "root": root, "lists": root.parent / "all.csv"}
    return given | {"label_list": lists / "videossl/kinetics"}


@pytest.mark.slow
def test_authors_lists_kinetics100(published_lists, folders_of):
    names = ("100c_20p_labeled0", "100c_20p_unlabeled0", "100c_10p_val0")
    given = kinetics_table(folders_of, published_lists, authors_kinetics(published_lists, *names))
    index = datasets.read_index(params.load(dataset="kinetics100", **given))
    assert index.table.split.value_counts().to_dict() == {"train": 88038, "test": 4706}
    assert index.classes == params.load(dataset="kinetics100").classes
    for pct, labelled in {5: 4352, 10: 8757, 20: 17565, 50: 43989}.items():
        split = splits.make_split(params.load(dataset="kinetics100", label_pct=pct, **given), index)
        assert (split.role == "labelled").sum() == labelled


def test_kinetics100_by_rule(published_lists):
    """The 100 classes with most videos in the authors' 20 % list of Kinetics-400 are theirs but for a tie."""
    videos = authors_kinetics(published_lists, "400c_20p_labeled0")
    table = pd.DataFrame({"video": videos, "class_name": [v.split("/")[1] for v in videos], "split": "train"})
    names = datasets.alphabetical(set(table.class_name))
    chosen = datasets.choose_classes(params.load(dataset="kinetics400", largest_classes=100), table, names)
    assert len(set(chosen) & set(params.load(dataset="kinetics100").classes)) >= 99


@pytest.mark.slow
def test_kinetics100_other_classes(published_lists, folders_of):
    """As many classes as the authors' list of 100 has, but not the same: the list of all classes is used."""
    whole = authors_kinetics(published_lists, "400c_10p_labeled0")
    videos = dict.fromkeys(whole + authors_kinetics(published_lists, "100c_10p_labeled0"))
    test = {f"Val/{video.split('/')[1]}/test.mp4" for video in videos}
    chosen = [*sorted(set(params.load(dataset="kinetics100").classes) - {"zumba"}), "crossing river"]
    given = kinetics_table(folders_of, published_lists, [*videos, *test])
    p = params.load(dataset="kinetics400", **given, classes=chosen)
    split = splits.make_split(p, datasets.read_index(p))
    labelled = {video for video in whole if video.split("/")[1] in chosen}
    assert set(split.video[split.role == "labelled"]) == labelled


def test_kinetics400_numbering(published_lists):
    lines = (published_lists / "videossl/kinetics/ssl_sub400c_10p_labeled0.lst").read_text().splitlines()
    ids = {line.split("/")[1]: int(line.rpartition("*")[2]) for line in lines if line}
    assert datasets.alphabetical(ids) == sorted(ids, key=ids.get)
