import pytest
from PIL import Image

import fasegr
from fasegr.data.dataset_mappers.build import test_resize as resize_for_tests
from fasegr.inference.export import _test_size

onnx_demo = pytest.importorskip("demo.onnx_demo")  # imports onnxruntime


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("INPUT.MIN_SIZE_TEST", 90, "INPUT.MAX_SIZE_TEST", 133, "INPUT.SIZE_MULTIPLE_TEST", 32),
        ("INPUT.MIN_SIZE_TEST", 0, "INPUT.SIZE_MULTIPLE_TEST", 32),
        ("INPUT.FIXED_SIZE_TEST", "(70, 96)"),
    ],
)
def test_sees_a_picture_at_the_size_that_the_predictor_does(opts):
    cfg = fasegr.load_cfg("quickstart/faseg_scenes.yaml", ["MODEL.DEVICE", "cpu", *opts])
    for width, height in [(77, 50), (90, 300), (64, 64), (500, 31)]:
        seen = onnx_demo.seen_size(Image.new("RGB", (width, height)), **_test_size(cfg))
        assert tuple(seen) == resize_for_tests(cfg).output_size((height, width))[::-1]
