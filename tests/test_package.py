"""The program `fasegr`: from the checkout, and from a wheel in a fresh environment outside it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import fasegr
import fasegr_programs
from fasegr.data.datasets.scenes.semantic import generate_scenes, scenes_folder

ROOT = Path(__file__).parents[1]
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 8),
    *("INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", 64, "INPUT.CROP.SIZE", "[64, 64]"),
    *("INPUT.SIZE_DIVISIBILITY", 64, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", "out"),
]


def _without_pythonpath():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the programs of an environment that has a wheel of this tree, and all else from this one."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("fasegr", "fasegr_programs", "configs", "demo", "tools"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for file in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "MANIFEST.in", "LICENSE"))):
        shutil.copy(file, tree)

    def pip(*arguments):
        # isolated from PYTHONPATH, in which pip might find this tree
        command = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, env=_without_pythonpath())

    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, tree)
    shutil.rmtree(tree)

    environment = folder / "env"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    (wheel,) = folder.glob("*.whl")
    pip("--python", python, "install", "--no-deps", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "all_else.pth").write_text(sysconfig.get_paths()["purelib"])
    return environment / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program of the environment in an empty folder and returns the completed process."""

    def run(program, *arguments, **env):
        return subprocess.run(
            [str(installed / program), *map(str, arguments)],
            cwd=tmp_path,
            env={**_without_pythonpath(), "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.slow
def test_trained_and_drawn_outside_the_checkout(run, installed, tmp_path, monkeypatch):
    code = "import importlib.util as u, fasegr_programs as p; print(u.find_spec('fasegr').origin, p.ROOT, sep='\\n')"
    for place in run("python", "-c", code).stdout.split():
        assert Path(place).is_relative_to(installed.parent)
    data = tmp_path / "data"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    generate_scenes(scenes_folder(), {"train": 2, "val": 1}, size=64)
    config = ["--config-file", "quickstart/faseg_scenes.yaml"]
    done = run("fasegr", "train", *config, *TINY, DETECTRON2_DATASETS=str(data))
    assert done.returncode == 0, done
    assert "mIoU" in done.stdout
    picture = next(data.rglob("val/**/*.jpg"), None) or next(data.rglob("*.png"))
    options = ["--opts", *TINY, "MODEL.WEIGHTS", "out/model_final.pth"]
    done = run("fasegr", "predict", *config, "--input", picture, "--output", "drawn", *options)
    assert done.returncode == 0, done
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == [f"{picture.stem}_overlay.png"]
    code = "import fasegr_programs as p; print(*sorted(file.name for file in (p.ROOT / 'demo/page').iterdir()))"
    assert run("python", "-c", code).stdout.split() == ["index.html", "page.css", "page.js"]


def test_the_list_of_commands(run):
    listed = run("fasegr", "--help")
    assert listed.returncode == 0, listed
    for name, command in fasegr_programs.COMMANDS.items():
        assert f"\n  {name} " in listed.stdout
        assert command.summary in listed.stdout


@pytest.mark.parametrize("name", fasegr_programs.COMMANDS)
def test_every_command_is_that_of_a_script(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fasegr"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(SystemExit) as stopped:
        fasegr_programs.main([name, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: fasegr {name} ")


def test_help_does_not_wait_for_torch():
    code = "import sys, fasegr_programs as p; p.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"), [("trian", "no command 'trian'; did you mean train?"), ("x", "choose from train, eval, ")]
)
def test_unknown_commands(name, message, capsys):
    assert fasegr_programs.main([name]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "fasegr train: error: config file faseg_scenes.yaml does not exist"),
        (["train"], "; did you mean quickstart/faseg_scenes.yaml"),
        (["eval", "quickstart/faseg_scenes.yaml"], "fasegr eval: error: --eval-only without weights"),
    ],
)
def test_an_error_names_the_command(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fasegr"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    name, config = [*arguments, "faseg_scenes.yaml"][:2]
    with pytest.raises(SystemExit) as stopped:
        fasegr_programs.main([name, "--config-file", config, *map(str, TINY)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_files_go_before_packaged_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cpu = ["MODEL.DEVICE", "cpu"]
    for name in ("quickstart/faseg_scenes.yaml", "configs/quickstart/faseg_scenes.yaml"):
        assert fasegr.load_cfg(name, cpu).SOLVER.MAX_ITER == 1050
    mine = tmp_path / "quickstart/faseg_scenes.yaml"
    mine.parent.mkdir()
    mine.write_text("_BASE_: camvid/faseg_r18_cpu.yaml\nSOLVER: {MAX_ITER: 7}\n")  # a packaged base
    cfg = fasegr.load_cfg("quickstart/faseg_scenes.yaml", cpu)
    assert (cfg.SOLVER.MAX_ITER, cfg.DATASETS.FOLDER.NAME) == (7, "camvid")
    with pytest.raises(FileNotFoundError, match=r"is a folder"):
        fasegr.load_cfg("quickstart", cpu)
