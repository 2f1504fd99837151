"""Sources: what each reads, what each refuses, and the counts of the published lists."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

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
        ("testlist01.txt", "Archery/v_", "/Archery/v_", "must lie below the root"),
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
    lists = write(
        tmp_path / "lists",
        {
            "chew_test_split1.txt": "a b!_chew.avi 1 \nc.avi 2 \nd.avi 0 \n",
            "kick_ball_test_split1.txt": "e.avi 1\nf.avi 2\n",
            "class_list.txt": "chew\n",
        },
    )
    root = empty_files(tmp_path / "videos", "chew/x.avi", "kick_ball/x.avi")
    wide = read("hmdb51", root, lists=lists)
    assert dict(zip(wide.table.video, wide.table.split, strict=True)) == {
        "chew/a b!_chew.avi": "train", "chew/c.avi": "test", "chew/d.avi": "train",
        "kick_ball/e.avi": "train", "kick_ball/f.avi": "test",
    }  # fmt: skip
    official = read("hmdb51", root, lists=lists, hmdb51_pool="official")
    assert "chew/d.avi" not in set(official.table.video)
    (lists / "chew_test_split1.txt").write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(DatasetError, match=r"line 2: 'b.avi 3' is not"):
        read("hmdb51", root, lists=lists)


def test_kinetics(tmp_path):
    names = [
        "Train/ski jumping/a_000001_000011.mp4",
        "Train/skiing (x)/b_000002_000012.mp4",
        "Train/skiing (x)/c_000003_000013.mp4",
        "Val/ski jumping/d_000004_000014.mp4",
        "Val/skiing (x)/e_000005_000015.mp4",
        "Val/skiing (x)/notes.txt",
    ]
    root = empty_files(tmp_path / "k", *names)
    index = read("kinetics", root)
    assert index.classes == ["skiing (x)", "ski jumping"]  # by letters, as the authors number them
    assert sorted(index.table.video) == sorted(names[:-1])
    rows = [
        "label,youtube_id,time_start,time_end,split",
        "ski jumping,a,1,11,train",
        "skiing (x),b,2,12,train",
        "skiing (x),c,3,13,train",
        "ski jumping,d,4,14,validate",
        "skiing (x),e,5,15,validate",
    ]

    def listed(*more: str) -> datasets.Index:
        lists = write(tmp_path / "lists", {"all.csv": "\n".join([*rows, *more])})
        return read("kinetics", root, lists=lists)

    pd.testing.assert_frame_equal(listed().table, index.table)
    empty_files(root, "test/ski jumping/f_000006_000016.mp4")  # the paper tests on the validation videos
    with pytest.warns(UserWarning, match="tested on val; test is left out"):
        pd.testing.assert_frame_equal(read("kinetics", root).table, index.table)
    with pytest.warns(UserWarning, match="tested on validate; test is left out"):
        pd.testing.assert_frame_equal(listed("ski jumping,f,6,16,test").table, index.table)
    with pytest.raises(DatasetError, match=r"line 7: split 'tset' is not train, val, validate, test"):
        listed("ski jumping,f,6,16,tset")
    shutil.rmtree(root / "test")
    largest = read("kinetics", root, largest_classes=1)
    assert largest.classes == ["skiing (x)"]
    write(tmp_path / "lists", {"all.csv": "label,id\nx,y\n"})
    with pytest.raises(DatasetError, match="no column youtube_id"):
        read("kinetics", root, lists=tmp_path / "lists")


def test_folder_with_and_without_split(tmp_path):
    root = empty_files(tmp_path / "a", *(f"{c}/{i} ü,'.MP4" for c in ("cat", "dog") for i in range(8)))
    index = read("folder", root, test_pct=25)
    assert index.table.groupby(["class_name", "split"]).size().to_dict() == {
        (c, s): n for c in ("cat", "dog") for s, n in (("test", 2), ("train", 6))
    }
    again = read("folder", root, test_pct=25, seed=5)
    pd.testing.assert_frame_equal(again.table, index.table)  # all runs share one test split
    split = empty_files(tmp_path / "b", "train/cat/1.mp4", "test/cat/2.mkv")
    assert list(read("folder", split).table.split) == ["test", "train"]
    empty_files(split, "val/cat/3.mkv")
    with pytest.warns(UserWarning, match="tested on test; val is left out"):
        assert list(read("folder", split).table.video) == ["test/cat/2.mkv", "train/cat/1.mp4"]


def test_empty_folder(tmp_path):
    with pytest.raises(DatasetError, match="no train video of any class found below"):
        read("folder", tmp_path)


def test_csv(tmp_path):
    root = empty_files(tmp_path / "v", "x/1.mp4")
    text = "video,label,split\nx/1.mp4,a,train\nx/2.mp4,a,test\nx/3.mp4,b,train\n"
    table = write(tmp_path, {"t.csv": text}) / "t.csv"
    index = read("csv", root, lists=table)
    assert list(index.table.split) == ["train", "test", "train"]
    table.write_text("video,label,split\nx/1.mp4,a,train\nx/2.mp4,,test\n")
    with pytest.raises(DatasetError, match=r"t.csv line 3"):
        read("csv", root, lists=table)
    with pytest.raises(DatasetError, match="needs lists"):
        read("csv", root)


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
    sizes = datasets.read_index(params.load(**ucf101, split=split)).table.split.value_counts()
    assert (sizes["train"], sizes["test"]) == (train, test)


def test_tuning_groups(ucf101):
    """Settings are chosen on groups of the training videos, never on official test videos."""
    usual = datasets.read_index(params.load(**ucf101)).table.set_index("video").split
    tuning = datasets.read_index(params.load(**ucf101, tune=True)).table
    assert set(tuning.video) == set(usual.index[usual == "train"])
    tuning["group"] = tuning.class_name + tuning.video.str.extract(r"_(g\d\d)_")[0]
    train, test = (set(tuning.group[tuning.split == s]) for s in ("train", "test"))
    assert len(test) == 4 * 101
    assert not train & test
    with pytest.raises(datasets.DatasetError, match="only source = 'ucf101'"):
        datasets.read_index(params.load(dataset="demo", tune=True))


@pytest.mark.parametrize(("pct", "labelled"), [(5, 476), (10, 953), (20, 1907), (50, 4768)])
def test_authors_lists_ucf101(ucf101, pct, labelled):
    p = params.load(**ucf101, label_pct=pct)
    index = datasets.read_index(p)
    split = splits.make_split(p, index)
    assert counts(split) == {"labelled": labelled, "unlabelled": 9537 - labelled, "test": 3783}
    without = set(index.classes) - set(split.class_name[split.role == "labelled"])
    assert without == ({"CliffDiving"} if pct == 5 else set())


@pytest.mark.parametrize(("pct", "labelled"), [(5, 21), (10, 66), (20, 123), (50, 264)])
def test_authors_lists_six_classes(ucf101, pct, labelled):
    p = params.load(**ucf101 | {"dataset": "ucf101_6", "label_pct": pct, "label_draw": "list"})
    split = splits.make_split(p, datasets.read_index(p))
    assert counts(split) == {"labelled": labelled, "unlabelled": 529 - labelled, "test": 202}


@pytest.mark.parametrize(("pct", "labelled"), [(40, 2094), (50, 2618), (60, 3141)])
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
    texts = [(lists / "videossl/kinetics" / name).read_text() for name in names]
    return [line.rpartition("*")[0] for text in texts for line in text.split("\n") if line]


@pytest.mark.slow
def test_authors_lists_kinetics100(published_lists, tmp_path):
    lists = published_lists / "videossl/kinetics"
    names = ("20p_labeled0", "20p_unlabeled0", "10p_val0")
    videos = authors_kinetics(published_lists, *(f"ssl_sub100c_{name}.lst" for name in names))
    rows = ["video,label,split"]
    for video in videos:
        subset, label, _ = video.split("/")
        rows.append(f'"{video}","{label}",{"train" if subset == "Train" else "test"}')
    for folder in {Path(video).parent for video in videos}:
        (tmp_path / "root" / folder).mkdir(parents=True)
    table = write(tmp_path, {"all.csv": "\n".join(rows)}) / "all.csv"
    given = {"root": tmp_path / "root", "lists": table, "source": "csv", "label_list": lists}
    index = datasets.read_index(params.load(dataset="kinetics100", **given))
    assert (index.table.split == "train").sum() == 88038
    assert (index.table.split == "test").sum() == 4706
    assert index.classes == params.load(dataset="kinetics100").classes
    for pct, labelled in {5: 4352, 10: 8757, 20: 17565, 50: 43989}.items():
        split = splits.make_split(params.load(dataset="kinetics100", label_pct=pct, **given), index)
        assert (split.role == "labelled").sum() == labelled


def test_kinetics100_by_rule(published_lists):
    """The 100 classes with most videos in the authors' 20 % list of Kinetics-400 are theirs but for a tie."""
    videos = authors_kinetics(published_lists, "ssl_sub400c_20p_labeled0.lst")
    table = pd.DataFrame({"video": videos, "class_name": [v.split("/")[1] for v in videos], "split": "train"})
    names = datasets.alphabetical(set(table.class_name))
    chosen = datasets.choose_classes(params.load(dataset="kinetics400", largest_classes=100), table, names)
    assert len(set(chosen) & set(params.load(dataset="kinetics100").classes)) >= 99


def test_kinetics100_other_classes(published_lists, tmp_path):
    """As many classes as the authors' list of 100 has, but not the same: the list of all classes is used."""
    videos = authors_kinetics(published_lists, "ssl_sub400c_10p_labeled0.lst", "ssl_sub100c_10p_labeled0.lst")
    names = {video.split("/")[1] for video in videos}
    chosen = [*sorted(set(params.load(dataset="kinetics100").classes) - {"zumba"}), "crossing river"]
    rows = ["video,label,split"]
    for video in dict.fromkeys(videos):
        _, label, name = video.split("/")
        rows.append(f'"Train/{label}/{name}","{label}",train')
    for label in names:
        (tmp_path / "root/Train" / label).mkdir(parents=True)
        rows.append(f'"Train/{label}/test.mp4","{label}",test')
    table = write(tmp_path, {"all.csv": "\n".join(rows)}) / "all.csv"
    given = {"root": tmp_path / "root", "lists": table, "source": "csv", "classes": chosen}
    p = params.load(dataset="kinetics400", **given, label_list=published_lists / "videossl/kinetics")
    split = splits.make_split(p, datasets.read_index(p))
    whole = authors_kinetics(published_lists, "ssl_sub400c_10p_labeled0.lst")
    labelled = {video for video in whole if video.split("/")[1] in chosen}
    assert set(split.video[split.role == "labelled"]) == labelled


def test_kinetics400_numbering(published_lists):
    lines = (published_lists / "videossl/kinetics/ssl_sub400c_10p_labeled0.lst").read_text().split("\n")
    ids = {line.split("/")[1]: int(line.rpartition("*")[2]) for line in lines if line}
    assert datasets.alphabetical(ids) == sorted(ids, key=ids.get)
