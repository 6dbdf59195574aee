import pytest

from fasegr.config.validate import KEYS
from fasegr.data.augmentation import LargeScaleJitter
from fasegr.data.dataset_mappers import TRAINING_MAPPERS, InstanceMapper, PanopticMapper, SemanticMapper, build_mapper


def test_the_config_allows_what_there_is():
    assert set(KEYS["INPUT.DATASET_MAPPER_NAME"].choices) == set(TRAINING_MAPPERS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mask_former_semantic", SemanticMapper),
        ("mask_former_instance", InstanceMapper),
        ("mask_former_panoptic", PanopticMapper),
        ("coco_instance_lsj", InstanceMapper),
        ("coco_panoptic_lsj", PanopticMapper),
    ],
)
def test_names(cfg, name, kind, tmp_path):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 96, 0.5, 1.5
    cfg.INPUT.RANDOM_FLIP = "vertical"
    cfg.INPUT.SIZE_DIVISIBILITY = 24
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.5
    cfg.INPUT.CACHE = str(tmp_path / "cache")
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 200
    mapper = build_mapper(cfg, is_train=True)
    assert isinstance(mapper, kind)
    assert mapper.num_classes == 3 and mapper.ignore_label == 200 and mapper.cache is not None
    augmentation = mapper.augmentation
    assert augmentation.flip == "vertical"
    if name.endswith("lsj"):
        assert isinstance(augmentation, LargeScaleJitter)
        assert (augmentation.image_size, augmentation.min_scale, augmentation.max_scale) == (96, 0.5, 1.5)
    else:
        assert augmentation.resize.short_edge_length == (24, 32, 40) and augmentation.size_divisibility == 24
        assert augmentation.color is not None and augmentation.crop.crop_size == (24, 24)
        # objects do not give every pixel a class, so crops do not look at classes there, as in Mask2Former
        assert augmentation.needs_sem_seg == (kind is not InstanceMapper)
