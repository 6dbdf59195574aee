"""Videos, folders of frames and cameras through a model, by OpenCV."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from tqdm import tqdm

from demo.drawing import Drawing
from fasegr import Predictor
from fasegr.data.datasets.image_files import IMAGE_SUFFIXES, find_files
from fasegr.data.image_io import read_image
from fasegr.evaluation.labels import predicted_labels
from fasegr.evaluation.prediction_files import label_file_names, write_label_png
from fasegr.utils.files import replacing_name

__all__ = ["CODECS", "Camera", "check_window", "open_frames", "segment_frames", "show_frames", "video_name"]

# What every OpenCV can write. H.264 is not among them: the builds on PyPI have no encoder for it.
CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
FRAMES_PER_SECOND = 25.0  # of folders, and of videos that do not say
WINDOW = "fasegr (Esc ends)"


class Frame(NamedTuple):
    """name: of its label PNG. pixels: (H, W, 3) uint8 RGB, None if it is broken, and `problem` says
    how."""

    name: str
    pixels: np.ndarray | None
    problem: str = ""


class Frames(Protocol):
    """fps: frames a second. count: their number, as far as it is known. size: (height, width) of all."""

    fps: float
    count: int | None
    size: tuple[int, int]

    def __iter__(self) -> Iterator[Frame]: ...


class VideoFile:
    """The frames of a video file. Raises OSError, which names the file, if it cannot be read as a video.

    Decoders leave damaged frames out. Where fewer frames come than the file has, the last frame that is passed on is
    one with a problem that says where they are missing.
    """

    def __init__(self, path: Path, fps: float | None = None):
        if not path.is_file():
            raise FileNotFoundError(f"--video-input {path}: there is no such file or folder")
        self.path = path
        self._video = cv2.VideoCapture(str(path))
        is_read, first = self._video.read() if self._video.isOpened() else (False, None)
        if not is_read:
            raise OSError(
                f"--video-input {path}: cannot be read as a video; it is damaged, cut short, or in a format that "
                "OpenCV does not know (ffmpeg -i FILE out.mp4 converts most)"
            )
        self._first = first
        self.size = first.shape[:2]
        stated = self._video.get(cv2.CAP_PROP_FPS)
        self._stated_fps = stated if 0 < stated < 1000 else None  # not NaN either
        self.fps = fps or self._stated_fps or FRAMES_PER_SECOND
        count = self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if 0 < count < 1e9 else None

    def __iter__(self) -> Iterator[Frame]:
        number, gap, last = 0, None, self._position()
        frame = self._first
        while frame is not None:
            yield Frame(f"{number:06d}.png", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            number += 1
            is_read, frame = self._video.read()
            now = self._position()
            if gap is None and is_read and self._stated_fps and now - last > 1.5 / self._stated_fps:
                gap = number
            last = now
            frame = frame if is_read else None
        self._video.release()
        # Of containers that do not count their frames, the number is an estimate from the duration.
        if self.count is not None and number < self.count - max(1, self.count // 100):
            at = number if gap is None else gap
            problem = (
                f"{self.path}: only {number} of {self.count} frames can be read; the file is damaged or cut short from "
                f"frame {at} ({at / (self._stated_fps or self.fps):.2f} s) on"
            )
            yield Frame(f"{at:06d}.png", None, problem)

    def _position(self) -> float:
        return self._video.get(cv2.CAP_PROP_POS_MSEC) / 1000


class FolderOfFrames:
    """The images of a folder, in the order of their names, in which numbers count as numbers (2 before 10)."""

    def __init__(self, path: Path, fps: float | None = None):
        listed = find_files(path)
        listed.say_what_is_left_out(path)
        self._files = sorted(listed.files, key=lambda file: _natural(str(file)))
        if not self._files:
            raise FileNotFoundError(f"--video-input {path}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
        self._names = label_file_names(map(str, self._files))
        self.fps = fps or FRAMES_PER_SECOND
        self.count = len(self._files)
        for file in self._files:  # the first that can be read
            try:
                self.size = read_image(file).shape[:2]
            except (OSError, ValueError) as error:
                first_error = error
            else:
                break
        else:
            raise ValueError(f"--video-input {path}: none of its {self.count} images can be read ({first_error})")

    def __iter__(self) -> Iterator[Frame]:
        for file in self._files:
            name = self._names[str(file)]
            try:
                pixels = read_image(file)
            except (OSError, ValueError) as error:
                yield Frame(name, None, str(error))
                continue
            if pixels.shape[:2] == self.size:
                yield Frame(name, pixels)
            else:
                sizes = [f"{width} x {height}" for height, width in (pixels.shape[:2], self.size)]
                yield Frame(name, None, f"{file}: is {sizes[0]}, and the first frame is {sizes[1]} (width x height)")


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def open_frames(path: str | os.PathLike, fps: float | None = None) -> Frames:
    """A video file, or a folder of images. fps: in place of its own frames a second."""
    path = Path(path).expanduser()
    return FolderOfFrames(path, fps) if path.is_dir() else VideoFile(path, fps)


def video_name(output: str, video_input: str) -> Path:
    """The file of `--output`; in a folder, it has the name of the input, as Mask2Former's demo does. Raises ValueError
    for a format that cannot be written, or if it would overwrite the input."""
    path, source = Path(output).expanduser(), Path(video_input).expanduser()
    if path.is_dir() or output.endswith(("/", os.sep)):
        suffix = source.suffix if source.is_file() and source.suffix.lower() in CODECS else ".mp4"
        path = path / f"{source.resolve().stem if source.is_file() else source.resolve().name}{suffix}"
    if path.suffix.lower() not in CODECS:
        raise ValueError(
            f"--output is {output}; a video ends in one of {', '.join(CODECS)} (.webm plays in browsers, .mp4 in most "
            "players), or name a folder that exists"
        )
    if path.resolve() == source.resolve():
        raise ValueError(f"--output {output} would overwrite --video-input; choose another name")
    return path


class _Writer:
    """Writes frames (H, W, 3) uint8 RGB of one size. Codecs halve the colours' resolution, so odd sizes get one more
    row or column."""

    def __init__(self, path: str, suffix: str, fps: float):
        self.path, self.suffix, self.fps = path, suffix, fps
        self.count = 0
        self._video: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self._video is None:
            codec = cv2.VideoWriter_fourcc(*CODECS[self.suffix])
            self._video = cv2.VideoWriter(self.path, codec, self.fps, frame.shape[1::-1])
            if not self._video.isOpened():
                raise OSError(
                    f"{self.path}: OpenCV cannot write this video; the folder may not be writable, or this OpenCV "
                    f"lacks the codec {CODECS[self.suffix]} (choose among {', '.join(CODECS)})"
                )
        self._video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1

    def finish(self) -> None:
        """Raises OSError if not all frames are in the file; OpenCV says nothing of a full disk."""
        if self._video is None:
            return
        self._video.release()
        video, readable = cv2.VideoCapture(self.path), 0
        while video.grab():
            readable += 1
        video.release()
        if readable != self.count:
            raise OSError(
                f"{self.path}: {self.count} frames were written and {readable} can be read; is the disk full?"
            )


@contextmanager
def _writing(path: Path, fps: float) -> Iterator[_Writer]:
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with replacing_name(path) as partial:
        writer = _Writer(partial, path.suffix.lower(), fps)
        yield writer
        writer.finish()
        if not writer.count:
            raise ValueError(f"{path} is not written: no frame could be segmented")


def segment_frames(
    predictor: Predictor,
    frames: Frames,
    output: Path,
    drawing: Drawing,
    batch_size: int = 1,
    labels: Path | None = None,
) -> tuple[int, list[str]]:
    """Draw the predictions for all frames into the video `output`. labels: a folder for label PNGs, one for each frame.

    Broken frames are left out. Ctrl-C ends the video after the frames that are done. Returns the number of frames done
    and what was wrong with others.
    """
    failed: list[str] = []
    with _writing(output, frames.fps) as writer, tqdm(total=frames.count, unit="frame", dynamic_ncols=True) as progress:
        try:
            for batch in _batches(frames, batch_size):
                for frame in batch:
                    if frame.pixels is None:
                        failed.append(frame.problem)
                        progress.write(f"failed: {frame.problem}", file=sys.stderr)
                whole = [frame for frame in batch if frame.pixels is not None]
                for frame, result in zip(whole, _results(predictor, whole, drawing), strict=True):
                    writer.write(_draw(predictor, frame, result, drawing))
                    if labels is not None:
                        values = predicted_labels(result).cpu().numpy()
                        write_label_png(values, labels / frame.name, len(predictor.class_names))
                progress.update(len(batch))
        except KeyboardInterrupt:
            failed.append(f"stopped after {writer.count} frames; {output} has these")
    return writer.count, failed


def _batches(frames: Frames, size: int) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while batch := list(islice(iterator, size)):
        yield batch


def _results(predictor: Predictor, frames: Sequence[Frame], drawing: Drawing) -> list[dict]:
    if not frames:
        return []
    try:
        return [drawing.chosen(result) for result in predictor.batch([frame.pixels for frame in frames])]
    except torch.OutOfMemoryError as error:
        remedy = "a smaller --batch-size" if len(frames) > 1 else "TEST.SLIDING_WINDOW.ENABLED True"
        raise ValueError(
            f"frames {frames[0].name} to {frames[-1].name} do not fit into memory; try {remedy}"
        ) from error


def _draw(predictor: Predictor, frame: Frame, result: dict, drawing: Drawing) -> np.ndarray:
    """Without a legend, whose height depends on what is in the frame."""
    return np.asarray(drawing.draw(predictor, frame.pixels, result, legend=False))


def show_frames(predictor: Predictor, frames: Frames, drawing: Drawing) -> int:
    """Draw the predictions in a window, as they come; Esc ends. Returns the number of frames."""
    count = 0
    try:
        for frame in tqdm(frames, total=frames.count, unit="frame", dynamic_ncols=True):
            if frame.pixels is None:
                print(f"failed: {frame.problem}", file=sys.stderr)
                continue
            (result,) = _results(predictor, [frame], drawing)
            drawn = _draw(predictor, frame, result, drawing)
            cv2.imshow(WINDOW, cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            count += 1
            if cv2.waitKey(1) == 27:  # Esc
                break
    finally:
        cv2.destroyAllWindows()
    return count


class Camera:
    """The frames of the first camera, without end. Raises OSError if there is none."""

    count = None
    fps = FRAMES_PER_SECOND

    def __init__(self):
        self._video = cv2.VideoCapture(0)
        is_read, frame = self._video.read() if self._video.isOpened() else (False, None)
        if not is_read:
            raise OSError("--webcam: camera 0 cannot be opened; is one connected, and used by no other program?")
        self.size = frame.shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        try:
            while True:
                is_read, frame = self._video.read()
                if not is_read:
                    raise OSError("--webcam: the camera sends no more frames")
                yield Frame("", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        finally:
            self._video.release()


def check_window(option: str) -> None:
    """Raises ImportError if this OpenCV shows no windows, OSError where there is no screen; both end OpenCV itself with
    errors that do not say so."""
    gui = re.search(r"^\s*GUI:\s*(\S+)", cv2.getBuildInformation(), re.MULTILINE)
    if gui is None or gui[1] == "NONE":
        raise ImportError(
            f"{option} shows its result in a window, which the installed OpenCV (opencv-python-headless) cannot open: "
            "pip uninstall opencv-python-headless; pip install opencv-python. To write a file instead: --video-input "
            "FILE --output FILE"
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise OSError(f"{option} shows its result in a window, and there is no screen (DISPLAY is not set)")
