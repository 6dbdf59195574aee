import pytest

from fasegr.config.validate import CHOICES
from fasegr.data.dataset_mappers import TRAINING_MAPPERS, InstanceSegments, PanopticSegments, SemanticMapper
from fasegr.data.sample_transform import LargeScaleJitter, ResizedCrop


def test_the_config_allows_what_there_is():
    assert set(CHOICES["INPUT.DATASET_MAPPER_NAME"]) == set(TRAINING_MAPPERS)


@pytest.mark.parametrize("segments", [InstanceSegments, PanopticSegments])
@pytest.mark.parametrize("view", [LargeScaleJitter, ResizedCrop])
def test_names(cfg, segments, view, tmp_path):
    kind = "instance" if segments is InstanceSegments else "panoptic"
    name = f"coco_{kind}_lsj" if view is LargeScaleJitter else f"mask_former_{kind}"
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 96, 0.5, 1.5
    cfg.INPUT.RANDOM_FLIP = "vertical"
    cfg.INPUT.SIZE_DIVISIBILITY = 24
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.5
    cfg.INPUT.CACHE = str(tmp_path / "cache")
    mapper = TRAINING_MAPPERS[name](cfg)
    assert mapper.segments is segments and type(mapper.view) is view
    assert mapper.num_classes == 3 and mapper.cache is not None and mapper.view.flip == "vertical"
    if view is LargeScaleJitter:
        assert (mapper.view.image_size, mapper.view.min_scale, mapper.view.max_scale) == (96, 0.5, 1.5)
    else:
        assert mapper.view.resize.lengths == (24, 32, 40) and mapper.view.multiple == 24
        assert mapper.view.colour is not None and mapper.view.crop.size == (24, 24)
        # objects do not cover the picture, so there crops do not look at classes, as in Mask2Former
        assert mapper.view.crop.max_area == (1.0 if kind == "instance" else 0.5)


def test_semantic_segmentation_has_its_own(cfg):
    assert isinstance(TRAINING_MAPPERS["mask_former_semantic"](cfg), SemanticMapper)


@pytest.mark.parametrize("name", sorted(TRAINING_MAPPERS))
def test_colours_are_red_green_blue(cfg, name):
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'BGR'"):
        TRAINING_MAPPERS[name](cfg)
