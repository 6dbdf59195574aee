from pathlib import Path

import pytest
import torch

from fasegr import build_model, load_cfg


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Config files and weights of two small models of random weights, with 12 classes: DFPQ, and Mask2Former's."""
    root = tmp_path_factory.mktemp("models")
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart" / "faseg_scenes.yaml"
    text = (
        f"_BASE_: {quickstart}\nMODEL:\n  DEVICE: cpu\n  MASK_FORMER: {{NUM_OBJECT_QUERIES: 4, DEC_LAYERS: DEPTH}}\n"
        "  SEM_SEG_HEAD: {TRANSFORMER_ENC_LAYERS: 1}\nINPUT: {MIN_SIZE_TEST: 64}\n"
    )
    learnable = "  FASEG:\n    POSITIONAL_QUERY: learnable\n    HIGH_RES: {ATTENTION: none}\n"
    files = []
    for name, depth, more in (("dfpq", 5, ""), ("mask2former", 4, learnable)):
        config, weights = root / f"{name}.yaml", root / f"{name}.pth"
        config.write_text(text.replace("DEPTH", str(depth)).replace("INPUT:", more + "INPUT:"))
        torch.manual_seed(0)
        torch.save({"model": build_model(load_cfg(config)).state_dict()}, weights)
        files.append((str(config), str(weights)))
    return files
