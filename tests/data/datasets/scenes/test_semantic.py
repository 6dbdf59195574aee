import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.folder import load_folder, read_classes
from fasegr.data.datasets.scenes import semantic as scenes
from fasegr.data.datasets.scenes.painter import CLASSES, COLOURS, paint_scene

pytestmark = pytest.mark.usefixtures("catalogs")
FEW = {"train": 3, "val": 2}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_scenes_on_disk_are_a_folder_dataset(tmp_path):
    folder = tmp_path / "scenes"
    scenes.generate_scenes(folder, FEW, size=32)
    assert read_classes(folder / "classes.txt") == (CLASSES, COLOURS)
    for number, (split, count) in enumerate(FEW.items()):
        records = load_folder(split, folder / "images" / split, folder / "annotations" / split)
        assert len(records) == count
        for index, record in enumerate(records):
            image, labels, _ = paint_scene(scenes.SEED, number, index, 32, 32)
            np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), image)
            np.testing.assert_array_equal(np.asarray(Image.open(record["sem_seg_file_name"])), labels)


def test_what_is_there_is_kept(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    scenes.generate_scenes(folder, FEW, size=32)
    assert list(folder.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, splits, size):
        (Path(folder) / "half").mkdir()
        raise KeyboardInterrupt

    folder = tmp_path / "sub" / "scenes"
    monkeypatch.setattr(scenes, "_paint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scenes.generate_scenes(folder, FEW, size=32)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == []
    monkeypatch.undo()
    scenes.generate_scenes(folder, FEW, size=32)
    assert len(files(folder)) == 11


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs to fork")
def test_several_processes_at_once(tmp_path):
    folder = tmp_path / "together" / "scenes"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=scenes.generate_scenes, args=(folder, FEW, 32)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    scenes.generate_scenes(tmp_path / "alone", FEW, size=32)
    assert files(folder) == files(tmp_path / "alone")
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["scenes"]


def test_registered_and_painted_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(scenes, "SPLITS", FEW)
    scenes.register_scenes()
    scenes.register_scenes()
    assert list(tmp_path.iterdir()) == []
    assert len(DatasetCatalog.get("scenes_val")) == 2 and len(DatasetCatalog.get("scenes_train")) == 3
    folder = tmp_path / "fasegr_scenes" / scenes.VERSION
    assert scenes.scenes_folder() == folder and folder.is_dir()
    meta = MetadataCatalog.get("scenes_train")
    assert meta.stuff_classes == CLASSES and meta.stuff_colors == COLOURS and meta.ignore_label == 255
