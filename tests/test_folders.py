"""Folders as people have them: any suffix, any layout, any spelling; nothing passed over without a word."""

import csv
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from support.helpers import slow_after

from videossl_core import params
from videossl_core.data import datasets, folders, labels, splits
from videossl_core.data.frames import FrameStore, StoreSettings
from videossl_lab.annotate import widget
from videossl_lab.annotate.labels import Labels


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_video(path: Path, container: str, codec_name: str, pix_fmt: str, count: int = 12) -> None:
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec_name, 25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, pix_fmt  # the size of DV
        for level in np.linspace(20, 230, count).astype(np.uint8):
            picture = np.full((576, 720, 3), level)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    ("suffix", "container", "codec_name", "pix_fmt"),
    slow_after(
        6,
        [
            ("gif", "gif", "gif", "rgb8"),
            ("vob", "mpeg", "mpeg2video", "yuv420p"),
            ("MOD", "mpeg", "mpeg2video", "yuv420p"),
            ("tod", "mpegts", "mpeg2video", "yuv420p"),
            ("asf", "asf", "wmv2", "yuv420p"),
            ("ogg", "ogg", "libvpx", "yuv420p"),
            ("ogm", "ogg", "libvpx", "yuv420p"),
            ("h264", "h264", "libx264", "yuv420p"),
            ("y4m", "yuv4mpegpipe", "rawvideo", "yuv420p"),
            ("LRV", "mp4", "libx264", "yuv420p"),
            ("insv", "mp4", "libx264", "yuv420p"),
            ("qt", "mov", "mpeg4", "yuv420p"),
            ("f4v", "f4v", "libx264", "yuv420p"),
            ("divx", "avi", "mpeg4", "yuv420p"),
            ("mxf", "mxf", "mpeg2video", "yuv420p"),
            ("gxf", "gxf", "mpeg2video", "yuv420p"),
            ("dv", "dv", "dvvideo", "yuv420p"),
            ("mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
            ("wtv", "wtv", "mpeg2video", "yuv420p"),
            ("rm", "rm", "rv20", "yuv420p"),
            ("m2v", "mpeg2video", "mpeg2video", "yuv420p"),
        ],
    ),
)
def test_suffix_found_and_decoded(tmp_path, suffix, container, codec_name, pix_fmt):
    name = f"v.{suffix}"
    write_video(tmp_path / name, container, codec_name, pix_fmt)
    assert datasets.videos_below(tmp_path) == [name]
    store = FrameStore(tmp_path / "store", StoreSettings(64, 90, 8))
    store.add([name], tmp_path)
    assert (store.table.reason[name], store.table.frames[name]) == ("", 12)


def test_passed_over_is_counted(tmp_path):
    root = touch(tmp_path, "a/1.mp4", "a/2.avi", "a/1.JPG", "b/2.jpg", "b/notes.txt", "README", "b/.DS_Store")
    assert folders.passed_over(root, datasets.videos_below(root)) == (
        "passed over: 2 .jpg, 1 without a suffix, 1 hidden, 1 .txt"
    )
    assert folders.passed_over(root / "a", ["1.mp4", "1.JPG"]) == "passed over: 1 .avi"
    assert folders.passed_over(root / "a", ["1.mp4", "1.JPG", "2.avi"]) == "passed over: nothing"


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    root, scandir = touch(tmp_path, "a/1.mp4", "b/2.mp4"), os.scandir

    def denied(path):  # root may read everything, so that a mode would not do
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.warns(UserWarning, match=r"/b: passed over \(Permission denied\)"):
        assert datasets.videos_below(root) == ["a/1.mp4"]


TWO = ["train/cat/1.mp4", "train/dog/2.mp4"]
PLAIN = ["cat/1.mp4", "dog/2.mp4"]


@pytest.mark.parametrize(
    ("videos", "splits"),
    [
        (PLAIN, ["", ""]),
        (["cat/session 1/1.mp4", "dog/2.mp4"], ["", ""]),
        ([*TWO, "val/cat/3.mp4"], ["train", "train", "val"]),
        ([*TWO, "valid/cat/3.mp4"], ["train", "train", "val"]),
        ([*TWO, "Validation/cat/3.mp4", "TEST/dog/4.mp4"], ["train", "train", "val", "test"]),
        (["Training/cat/1.mp4", "dev/cat/2.mp4", "testing/cat/3.mp4"], ["train", "val", "test"]),
        (["train_set/cat/1.mp4", "test set /cat/2.mp4"], ["train", "test"]),
        (["train/cat/1.mp4", "test/cat/s1/2.mp4"], ["train", "test"]),
        (TWO, ["train", "train"]),
        # the class of these two is not known
        (["1.mp4", *PLAIN], ["", ""]),
        (["train/1.mp4", *TWO], ["train", "train"]),
    ],
)
def test_layout(videos, splits):
    rows = folders.arrange(Path("/v"), videos)
    assert [split for *_, split in rows] == splits
    assert [video for video, *_ in rows] == videos[len(videos) - len(rows) :]
    for video, name, _ in rows:
        assert f"/{name}/" in f"/{video}"
        assert name in ("cat", "dog")


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([*TWO, "extras/cat/3.mp4"], "train look like splits, extras like classes.*classes = extras,train"),
        (["test/1.mp4", *PLAIN], "test look like splits, cat, dog like classes"),
        (["train/1.mp4", "valid/2.mp4"], "no class folders in train, valid.*source = csv"),
        ([*TWO, "test/3.mp4"], "no class folders in test"),
        ([*TWO, "val/cat/3.mp4", "valid/cat/4.mp4"], "of train, val, valid two are for the same split"),
        (["val/cat/3.mp4", "test/cat/4.mp4"], "no folder train beside test, val"),
        ([f"data/{video}" for video in PLAIN], "only one class, data, with folders as cat, dog; set root"),
        ([f"data/{video}" for video in [*TWO, "test/cat/3.mp4"]], "set root to the folder that holds"),
        (["train/videos/cat/1.mp4", "test/videos/dog/2.mp4"], "only one class, videos, with folders as cat"),
    ],
)
def test_layout_that_cannot_be_decided(videos, message):
    with pytest.raises(datasets.DatasetError, match=f"/v: .*{message}"):
        folders.arrange(Path("/v"), videos)


@pytest.mark.parametrize(
    ("videos", "classes"),
    [
        (["train/1.mp4", "bus/2.mp4", "car/3.mp4"], ["train", "bus"]),  # a train on rails
        (["test/1.mp4", *PLAIN], ["cat", "dog"]),
        (["test/a/1.mp4", "train/a/2.mp4"], ["train", "test"]),
        (["data/cat/1.mp4", "data/dog/2.mp4"], ["data"]),
    ],
)
def test_named_classes_decide(videos, classes):
    rows = folders.arrange(Path("/v"), videos, classes)
    assert rows == [(video, video.split("/")[0], "") for video in videos]


def index_of(root: Path, source: str = "folder", **given) -> datasets.Index:
    return datasets.read_index(params.load(dataset="some", source=source, root=root, **given))


def test_folders_without_videos_are_named(tmp_path):
    root = touch(
        tmp_path, *TWO, "valid/cat/3.mp4", "valid/bird/3.txt", "annotations/a.json", "__MACOSX/._1.mp4"
    )
    touch(root, "train/loose.mp4")
    with (
        pytest.warns(UserWarning, match="no video in __MACOSX, annotations, valid/bird: passed over"),
        pytest.warns(UserWarning, match="1 videos lie in no class folder, such as train/loose.mp4"),
    ):
        index = index_of(root)
    assert list(index.table.split) == ["train", "train", "test"]
    assert index.classes == ["cat", "dog"]


def test_tested_on_the_right_split(tmp_path):
    root = touch(tmp_path, *(f"train/{name}/{i}.mp4" for name in ("cat", "dog") for i in range(4)))
    with pytest.warns(UserWarning, match="only a training folder; 25 % of it is held out"):
        assert index_of(root).table.split.value_counts().to_dict() == {"train": 6, "test": 2}
    touch(root, "dev/cat/9.mp4")
    assert list(index_of(root).table.query("split == 'test'").video) == ["dev/cat/9.mp4"]
    touch(root, "Test/cat/9.mp4")
    with pytest.warns(UserWarning, match="tested on test; val is left out"):
        assert list(index_of(root).table.query("split == 'test'").video) == ["Test/cat/9.mp4"]


def test_no_video_says_what_there_is(tmp_path):
    with pytest.raises(datasets.DatasetError, match=r"no train video.*passed over: 2 \.jpg"):
        index_of(touch(tmp_path, "cat/1.jpg", "dog/1.jpg"))


def test_spaces_around_class_names(tmp_path):
    videos = [f"{name}/{i}.mp4" for name in ("walk", "walk ", "run") for i in range(2)]
    root = touch(tmp_path / "v", *videos)
    index = index_of(root, classes=[" walk", "run"])
    assert index.classes == ["walk", "run"]
    assert index.table.class_name.value_counts().to_dict() == {"walk": 4, "run": 2}
    lists = tmp_path / "t.csv"
    lists.write_text("video,label\nwalk/0.mp4, walk\nwalk/1.mp4,walk \nrun/0.mp4,run\nrun/1.mp4,run\n")
    assert index_of(root, "csv", lists=lists).classes == ["run", "walk"]
    lists.write_text("video,label\nwalk/0.mp4, \n")
    with pytest.raises(datasets.DatasetError, match="line 2: needs a video, a label"):
        index_of(root, "csv", lists=lists)


@pytest.mark.parametrize("other", ["Throw_Ball", "throw-ball", "throwball"])
def test_near_names_are_warned_of(tmp_path, other):
    root = touch(tmp_path, *(f"throw ball/{i}.mp4" for i in range(3)), f"{other}/1.mp4", f"{other}/2.mp4")
    message = f"('throw ball' .3 videos.|'{other}' .2 videos.) and .* differ only by case, spaces, _ or -"
    with pytest.warns(UserWarning, match=message):
        assert len(index_of(root).classes) == 2


def test_near_labels_are_warned_of_while_labelling(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "labels.csv").write_text("video,label,split\n1.mp4,Walk ,train\n2.mp4,walk,train\n")
    p = params.load(dataset="my_videos", root=tmp_path)
    with pytest.warns(UserWarning, match=r"'Walk' \(1 videos\) and 'walk' \(1 videos\) differ only by case"):
        assert widget._classes(p) == ["Walk", "walk"]


KINETICS = ["ski jumping,a-b_c,1,11,train", "ski jumping,d,2,12,train", "skiing (x),e,3,13,train"]
KINETICS += ["ski jumping,f,4,14,validate", "skiing (x),g,5,15,validate"]


@pytest.mark.parametrize(
    "videos",
    [
        # class folders, as they were, with _ for spaces, or flat; any suffix
        [
            "train/ski jumping/a-b_c_000001_000011.mkv",
            "train/ski jumping/d_000002_000012.webm",
            "train/skiing (x)/e_000003_000013.mp4",
            "val/ski jumping/f_000004_000014.MP4",
            "val/skiing (x)/g_000005_000015.mkv",
        ],
        [
            "Train/ski_jumping/a-b_c_000001_000011.mp4",
            "Train/ski_jumping/d_000002_000012.mp4",
            "Train/skiing_(x)/e_000003_000013.mp4",
            "validation/ski_jumping/f_000004_000014.mp4",
            "validation/skiing_(x)/g_000005_000015.mp4",
        ],
        [
            "train/a-b_c_000001_000011.mkv",
            "train/d_000002_000012.mp4",
            "train/e_000003_000013.avi",
            "val/f_000004_000014.webm",
            "val/g_000005_000015.mp4",
        ],
        [
            "a-b_c_000001_000011.mkv",
            "d_000002_000012.mp4",
            "e_000003_000013.avi",
            "f_000004_000014.webm",
            "g_000005_000015.mp4",
        ],
    ],
)
def test_kinetics_layouts(tmp_path, videos):
    root, lists = touch(tmp_path / "k", *videos), tmp_path / "all.csv"
    lists.write_text(
        "\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *(f"{r},0" for r in KINETICS)])
    )
    table = index_of(root, "kinetics", lists=lists).table
    assert sorted(table.video) == sorted(videos)
    assert dict(zip(table.video, table.class_name, strict=True)) == {
        video: row.split(",")[0] for video, row in zip(videos, KINETICS, strict=True)
    }
    assert table.split.value_counts().to_dict() == {"train": 3, "test": 2}
    # one that is not there is rejected later, by its name
    (root / videos[1]).unlink()
    table = index_of(root, "kinetics", lists=lists).table
    assert sorted(table.video) == sorted([*videos[:1], *videos[2:], "train/ski jumping/d_000002_000012.mp4"])


COMPOSED, APART = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("on_disk", "in_list"), [(COMPOSED, APART), (APART, COMPOSED), (APART, APART)])
def test_accents_composed_or_not(tmp_path, on_disk, in_list):
    """Names in lists are those of the disk, however these spell an accent, and the disk's are opened."""
    videos = [f"{on_disk}/{on_disk}{i}.mp4" for i in range(3)] + ["b/1.mp4", "b/2.mp4"]
    root = touch(tmp_path / "v", *videos)
    index = index_of(root, classes=f"b,{in_list}")
    assert index.classes == ["b", COMPOSED]
    assert all((root / video).exists() for video in index.table.video)
    rows = [
        f"{in_list}/{in_list}{i}.mp4,{in_list},{split}" for i, split in enumerate(["train", "train", "test"])
    ]
    lists = tmp_path / "t.csv"
    lists.write_text("\n".join(["video,label,split", *rows]))
    index = index_of(root, "csv", lists=lists)
    assert list(index.table.video) == videos[:3]
    assert index.classes == [COMPOSED]
    index = index_of(root, "annotated", lists=lists, classes=in_list)
    assert list(index.table.video) == sorted(videos)
    assert index.table.class_name.value_counts().to_dict() == {COMPOSED: 3, "": 2}
    assert set(Labels(lists, [COMPOSED], videos=videos).rows) == set(videos[:3])
    stars = tmp_path / "labelled.lst"
    stars.write_text(f"somewhere/{in_list}/{in_list}0.mp4*0\n")
    train = index.table[index.table.class_name == COMPOSED].reset_index(drop=True)
    assert list(splits.read_label_list(stars, train, index)) == [0]


def test_accents_in_official_lists(tmp_path):
    root = touch(tmp_path / "v", *(f"{APART}/v_{APART}_g0{i}_c01.avi" for i in (1, 8)))
    lists = touch(tmp_path / "lists")
    lists.mkdir()
    (lists / "classInd.txt").write_text(f"1 {COMPOSED}\r\n", encoding="utf-8-sig", newline="")
    (lists / "trainlist01.txt").write_text(f"{COMPOSED}/v_{COMPOSED}_g08_c01.avi 1\n")
    (lists / "testlist01.txt").write_text(f"{APART}/v_{APART}_g01_c01.avi\n")
    index = index_of(root, "ucf101", lists=lists)
    assert sorted(index.table.video) == sorted(datasets.videos_below(root))
    assert index.classes == [COMPOSED]


CELLS = [
    ["video", "label", "split"],
    ["x/1, 2.mp4", "ä;b", "train"],
    ["x/2.mp4", "c", "test"],
    ["x/3.mp4", "c", "train"],
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("surplus", [[], ["", ""]])
def test_csv_of_a_spreadsheet(tmp_path, encoding, end, separator, surplus):
    out = io.StringIO()
    rows = [[*cells, *surplus] for cells in CELLS] + [[""] * len(surplus)]
    csv.writer(out, delimiter=separator, lineterminator=end).writerows(rows)
    path = tmp_path / "t.csv"
    path.write_bytes(out.getvalue().encode(encoding))
    expected = {video: (label, split) for video, label, split in CELLS[1:]}
    assert labels.read(path) == expected
    index = index_of(touch(tmp_path / "v", "x/1, 2.mp4"), "csv", lists=path)
    rows = index.table[["video", "class_name", "split"]].to_numpy().tolist()
    assert {video: (label, split) for video, label, split in rows} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "video|label\nx/1.mp4|a\n",
            r"no column video, label; it has video.label. Separate them by , or ; or",
        ),
        ("", r"no column video, label; it has nothing"),
        (
            "video,label\nx/1, 2.mp4,a\n",
            r"line 2: not readable as CSV: 3 cells instead of 2 .video,label.; a name that holds ',' is put",
        ),
        ('video,label\n\n"x/1.mp4,a\n', r"line 3: not readable as CSV: unexpected end"),
        ("video,label,split\n\nx/1.mp4,a,trian\n", r"line 3: needs a video, a label, and train, test"),
        ("video,label\n\xe4.mp4,a\n", r"not a text file in UTF-8; save it as that"),
    ],
)
def test_wrong_csv_is_named(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"t.csv:? {message}|t.csv: {message}"):
        index_of(touch(tmp_path / "v", "x/1.mp4"), "csv", lists=path)
