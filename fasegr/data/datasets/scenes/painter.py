"""Painting landscapes with a class for every pixel: a dataset that needs no download.

A scene is drawn back to front, sky first, each thing by a signed distance: negative inside, positive outside, in
units in which the picture is 128 high. The distance gives soft edges to the image and hard ones to the labels, at any
resolution.

The same seed gives the same bytes on every machine. For that, arithmetic is +, -, *, / and sqrt of float64, which
IEEE 754 defines to the last bit; sin, exp, pow, matrix products and sums of arrays differ between processors and
libraries, and random numbers other than `Generator.random` and `Generator.integers` may; none of these is used.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["CLASSES", "COLOURS", "THINGS", "Scene", "paint_scene"]


def _colours(text: str) -> list[tuple[int, int, int]]:
    """'255 0 0, 0 255 0' as [(255, 0, 0), (0, 255, 0)]."""
    return [tuple(map(int, colour.split())) for colour in text.split(",")]


CLASSES = ["sky", "mountain", "grass", "water", "road", "house", "tree", "fence", "car", "balloon", "sun", "bird"]
COLOURS = _colours(
    "126 178 221, 136 122 140, 142 190 92, 44 110 170, 92 88 96, 222 132 84, 38 104 66, "
    "240 226 190, 206 48 66, 186 86 186, 250 206 60, 28 26 40"
)
SKY, MOUNTAIN, GRASS, WATER, ROAD, HOUSE, TREE, FENCE, CAR, BALLOON, SUN, BIRD = range(len(CLASSES))
THINGS = (HOUSE, TREE, CAR, BALLOON, SUN, BIRD)  # classes whose objects are counted one by one

HEIGHT = 128.0  # of any picture, in units of the drawing


class Scene(NamedTuple):
    """image: uint8 (H, W, 3), RGB. labels: uint8 (H, W). objects: uint8 (H, W), for pixels of `THINGS` the number of
    the object, from 1 on and possibly with gaps; 0 elsewhere."""

    image: np.ndarray
    labels: np.ndarray
    objects: np.ndarray


# the light of an hour: colour of the zenith, of the horizon, of clouds, of their dark side; the light, by which what
# stands on the ground is multiplied; the sun
MOODS = (
    ((62, 124, 202), (190, 222, 240), (252, 252, 255), (196, 208, 222), (255, 252, 244), (255, 246, 196)),  # noon
    ((86, 140, 200), (226, 232, 226), (255, 255, 255), (204, 210, 220), (250, 250, 250), (255, 250, 214)),  # haze
    ((104, 126, 182), (255, 206, 146), (255, 230, 200), (196, 156, 160), (255, 226, 186), (255, 216, 120)),  # gold
    ((60, 58, 118), (246, 134, 104), (236, 150, 150), (116, 86, 136), (206, 162, 176), (255, 142, 84)),  # dusk
    ((134, 144, 158), (204, 210, 212), (226, 230, 232), (150, 158, 168), (226, 230, 234), (246, 244, 232)),  # grey
    ((126, 152, 216), (255, 210, 208), (255, 236, 236), (206, 178, 206), (255, 232, 232), (255, 236, 206)),  # dawn
    ((16, 22, 58), (66, 82, 132), (80, 92, 138), (36, 44, 84), (112, 126, 170), (238, 240, 222)),  # moon
)
SEASONS = (  # grass: light, dark; leaves: light, dark
    ((134, 178, 84), (84, 136, 58), (110, 158, 70), (46, 96, 48)),  # spring
    ((162, 178, 90), (104, 138, 60), (84, 136, 62), (34, 82, 42)),  # summer
    ((196, 170, 92), (146, 126, 62), (214, 134, 54), (142, 66, 36)),  # autumn
    ((206, 192, 128), (166, 148, 92), (120, 138, 74), (62, 86, 46)),  # dry
    ((240, 244, 248), (204, 216, 230), (150, 172, 170), (58, 88, 84)),  # snow
)
PAINTS = _colours(
    "206 42 48, 240 240 240, 44 92 178, 246 190 40, 36 128 92, 232 116 40, 118 60 142, 56 60 70, 110 190 210"
)
WALLS = _colours("236 224 200, 206 170 128, 176 92 72, 222 206 146, 178 196 206, 244 244 240, 150 122 98")
ROOFS = _colours("166 74 52, 96 84 84, 70 78 98, 132 98 66, 128 44 44")


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour of 0..1 as (3, 1, 1), which broadcasts against pictures."""
    return np.array([red, green, blue]).reshape(3, 1, 1)


BLACK, WHITE = rgb(0, 0, 0), rgb(1, 1, 1)


class Dice:
    """Random numbers from exact operations only."""

    def __init__(self, seed: tuple[int, ...]):
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def chance(self, share: float) -> bool:
        return float(self._generator.random()) < share

    def whole(self, low: int, high: int) -> int:
        """low <= result <= high."""
        return int(self._generator.integers(low, high + 1))

    def pick(self, options):
        return options[int(self._generator.integers(len(options)))]

    def table(self, *shape: int) -> np.ndarray:
        return self._generator.random(shape)

    def colour(self, base: tuple[int, int, int], spread: float = 16) -> np.ndarray:
        """`base` (0..255) with each channel moved by up to `spread`; result (3, 1, 1) of 0..1."""
        return rgb(*(min(255.0, max(0.0, c + self.between(-spread, spread))) / 255 for c in base))


def smooth(x, low: float, high: float):
    """0 below `low`, 1 above `high`, without corners."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(table: np.ndarray, x, y):
    """Values of `table` (n, m) at whole places, smoothly between them, and repeating beyond its edges.

    x: (1 or H, W); y: (1 or H, 1), one value for a row of the picture, so that rows are mixed once and not for each
    pixel.
    """
    rows, columns = table.shape
    left, top = np.floor(x), np.floor(y)
    u, v = x - left, y - top
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    left, top = left.astype(np.int64) % columns, top.astype(np.int64)[:, 0] % rows
    right, bottom = (left + 1) % columns, (top + 1) % rows
    mixed = table[top] * (1 - v) + table[bottom] * v
    if len(left) == 1:
        return mixed.take(left[0], 1) * (1 - u) + mixed.take(right[0], 1) * u
    start = np.arange(len(mixed))[:, None] * columns
    return mixed.take(start + left) * (1 - u) + mixed.take(start + right) * u


def fractal(table: np.ndarray, x, y, octaves: int):
    """Noise of halving size and strength, in 0..1."""
    total, weight, weights = 0.0, 1.0, 0.0
    for octave in range(octaves):
        scale = float(2**octave)
        total = total + weight * noise(table, x * scale + 7.3 * octave, y * scale + 3.1 * octave)
        weights += weight
        weight *= 0.5
    return total / weights


def mix(first, second, share):
    """From `first` (share 0) to `second` (share 1); colours (3, 1, 1) or (3, H, W), `share` a number or (H, W)."""
    return first + (second - first) * share


class Window:
    """A rectangle of a landscape: what is painted in it costs no more than its area.

    Shapes are signed distances, (H, W), from the window's coordinates x (1, W) and y (H, 1).
    """

    def __init__(self, scene: "Landscape", rows: slice, columns: slice):
        self.thing = scene.thing
        self.per_unit = scene.per_unit
        self.table = scene.table
        self.x, self.y = scene.x[:, columns], scene.y[rows]
        self.image, self.labels = scene.image[:, rows, columns], scene.labels[rows, columns]
        self.objects = scene.objects[rows, columns]

    def disc(self, centre_x, centre_y, radius):
        x, y = self.x - centre_x, self.y - centre_y
        return np.sqrt(x * x + y * y) - radius

    def ellipse(self, centre_x, centre_y, radius_x, radius_y):
        """Exact on the outline, and close to it when the ellipse is not too flat."""
        u, v = (self.x - centre_x) / radius_x, (self.y - centre_y) / radius_y
        return (np.sqrt(u * u + v * v) - 1) * min(radius_x, radius_y)

    def box(self, left, top, right, bottom):
        return np.maximum(np.maximum(left - self.x, self.x - right), np.maximum(top - self.y, self.y - bottom))

    def rod(self, start, end, radius, end_radius=None):
        """A line from `start` to `end`, `radius` thick to each side, tapering to `end_radius`."""
        along_x, along_y = end[0] - start[0], end[1] - start[1]
        share = (self.x - start[0]) * along_x + (self.y - start[1]) * along_y
        share = np.clip(share / (along_x * along_x + along_y * along_y), 0, 1)
        thickness = radius if end_radius is None else radius + (end_radius - radius) * share
        return self.disc(start[0] + share * along_x, start[1] + share * along_y, 0) - thickness

    def polygon(self, *corners):
        """Convex, corners in clockwise order as seen on the screen."""
        distance = None
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            across, down = x1 - x0, y1 - y0
            edge = (self.x - x0) * down - (self.y - y0) * across
            edge = edge / float(np.sqrt(across * across + down * down))
            distance = edge if distance is None else np.maximum(distance, edge)
        return distance

    def grain(self, size: float, octaves: int = 2, stretch: float = 1.0):
        """Noise with features of `size` units, `stretch` times as wide as high."""
        return fractal(self.table, self.x / (size * stretch) + 11.7, self.y / size + 5.9, octaves)

    def paint(self, distance, colour, label: int | None = None, opacity=1.0) -> None:
        """Cover what has `distance` < 0 with `colour` ((3, 1, 1) or (3, H, W)), and with `label` if there is one."""
        cover = np.minimum(np.maximum(0.5 - distance * self.per_unit, 0), 1) * opacity
        self.image += (colour - self.image) * cover
        if label is not None:
            np.copyto(self.labels, label, where=distance < 0)
            np.copyto(self.objects, self.thing if label in THINGS else 0, where=distance < 0)


class Landscape:
    """One scene: light, ground and season are chosen first, then each thing is painted by its own method."""

    def __init__(self, dice: Dice, height: int, width: int):
        self.dice = dice
        self.per_unit = height / HEIGHT  # pixels
        self.width = width / self.per_unit
        self.y = ((np.arange(height) + 0.5) / self.per_unit)[:, None]
        self.x = ((np.arange(width) + 0.5) / self.per_unit)[None, :]
        self.image = np.zeros((3, height, width))
        self.labels = np.zeros((height, width), dtype=np.uint8)
        self.objects = np.zeros((height, width), dtype=np.uint8)
        self.thing = 0  # the number of what is being painted
        self.table = dice.table(64, 64)
        mood, other, share = dice.pick(MOODS), dice.pick(MOODS[:-1]), dice.between(0, 0.3)
        self.night = mood is MOODS[-1]
        blended = (mix(dice.colour(a, 12), dice.colour(b, 12), share) for a, b in zip(mood, other, strict=True))
        self.zenith, self.low_sky, self.cloud, self.cloud_shade, self.light, self.sun_colour = blended
        self.season = dice.pick(SEASONS)
        self.snow = self.season is SEASONS[-1]
        self.horizon = dice.between(44, 70)
        self.shore = self.horizon + 1  # nothing stands, and no road starts, above
        self.sun_x, self.sun_y = dice.between(8, self.width - 8), dice.between(9, self.horizon - 10)
        self.lit_from_left = self.sun_x < self.width / 2

    def window(self, left: float, top: float, right: float, bottom: float) -> Window:
        """The part of the picture from `left` to `right` and `top` to `bottom`, with room for soft edges."""
        margin = 2 / self.per_unit

        def limits(low: float, high: float, size: int) -> slice:
            start = max(0, int((low - margin) * self.per_unit))
            return slice(start, max(start, min(size, int((high + margin) * self.per_unit) + 1)))

        return Window(self, limits(top, bottom, len(self.y)), limits(left, right, self.x.shape[1]))

    def across(self, top: float, bottom: float = HEIGHT) -> Window:
        """The same over the whole width."""
        return self.window(0, top, self.width, bottom)

    # helpers

    def lit(self, base: tuple[int, int, int], spread: float = 16) -> np.ndarray:
        """A colour in the light of the hour."""
        return self.dice.colour(base, spread) * self.light

    def depth(self, y: float) -> float:
        """0 at the horizon, 1 at the lower edge: also the size of things, since the ground is flat."""
        return (y - self.horizon) / (HEIGHT - self.horizon)

    def curve(self, size: float, octaves: int = 3):
        """Random heights over x, (1, W), in 0..1; with features of `size` units."""
        offset, row = self.dice.between(0, 64), self.dice.between(0, 64)
        return fractal(self.table, self.x / size + offset, np.full((1, 1), row), octaves)

    # the sky

    def paint_sky(self) -> None:
        air, dice = self.across(0, self.horizon), self.dice
        height = np.clip(air.y / self.horizon, 0, 1)
        colour = mix(self.zenith, self.low_sky, height * height * (1.6 - 0.6 * height))
        glow = 1 / (1 + air.disc(self.sun_x, self.sun_y, 0) / dice.between(8, 18))
        colour = colour + (self.sun_colour - colour) * (glow * glow * dice.between(0.4, 0.9))
        air.paint(np.full(air.labels.shape, -9.0), colour, SKY)
        if self.night:
            for _ in range(dice.whole(20, 50)):
                x, y, radius = dice.between(0, self.width), dice.between(0, self.horizon), dice.between(0.25, 0.6)
                star = self.window(x - radius, y - radius, x + radius, y + radius)
                star.paint(star.disc(x, y, radius), WHITE, opacity=dice.between(0.4, 1))

    def paint_sun(self) -> None:
        """Or the moon, at night."""
        dice, x, y = self.dice, self.sun_x, self.sun_y
        radius = dice.between(5, 10)
        window = self.window(x - 14, y - 14, x + 14, y + 14)
        distance = window.disc(x, y, radius)
        colour = mix(self.sun_colour, WHITE, smooth(-distance / radius, 0, 1) * 0.7)
        if self.night:
            colour = self.sun_colour * (0.78 + 0.22 * smooth(window.grain(3), 0.3, 0.6))
        window.paint(distance, colour, SUN)

    def paint_clouds(self) -> None:
        air, dice = self.across(0, self.horizon), self.dice
        cover = dice.between(0.42, 0.62)
        shape = fractal(air.table, air.x / 34 + dice.between(0, 64), air.y / 15 + dice.between(0, 64), 4)
        below = fractal(air.table, air.x / 34 + 3.1, air.y / 15 + 9.7, 3)
        opacity = smooth(shape, cover, cover + 0.16) * (1 - smooth(air.y, self.horizon * 0.55, self.horizon)) * 0.85
        opacity = np.where(air.labels == SKY, opacity, opacity * 0.2)  # thin where it passes before the sun
        air.paint(np.full((1, 1), -9.0), mix(self.cloud_shade, self.cloud, smooth(below, 0.3, 0.7)), opacity=opacity)

    def paint_balloon(self) -> None:
        dice = self.dice
        radius = dice.between(6, 15)
        x = dice.between(radius, self.width - radius)
        y = dice.between(radius + 1, max(radius + 2, self.horizon - radius))
        basket = y + radius * 1.9
        window = self.window(x - radius, y - radius, x + radius, basket + radius * 0.4)
        for side in (-1, 1):
            rope = window.rod((x + side * radius * 0.4, y + radius), (x + side * radius * 0.16, basket), 0.3)
            window.paint(rope, self.lit((70, 56, 48)), BALLOON)
        half = radius * 0.24
        wicker = window.box(x - half, basket, x + half, basket + radius * 0.34)
        window.paint(wicker, self.lit((150, 104, 60)), BALLOON)
        envelope = np.minimum(
            window.disc(x, y, radius),
            window.polygon(
                (x - radius * 0.9, y + radius * 0.43),
                (x + radius * 0.9, y + radius * 0.43),
                (x + radius * 0.3, y + radius * 1.5),
                (x - radius * 0.3, y + radius * 1.5),
            ),
        )
        first, second = (self.lit(dice.pick(PAINTS), 12) for _ in range(2))
        if dice.chance(0.6):  # gores: bands that narrow towards the sides and the ends
            v = np.clip((window.y - y) / (radius * 1.6), -1, 1)
            bulge = np.sqrt(np.maximum(1 - v * v, 0.02))
            band = (window.x - x) / (radius * bulge)
            stripes = np.floor(band * dice.pick((1.5, 2.5)) + 0.5)
        else:
            stripes = np.floor((window.y - y) / (radius * dice.between(0.35, 0.6)) + 0.5)
        colour = np.where(stripes % 2 == 0, first, second)
        side = -1 if self.lit_from_left else 1
        shade = 1.1 - 0.5 * smooth(window.disc(x + side * radius * 0.4, y - radius * 0.4, 0), 0, radius * 2)
        window.paint(envelope, colour * shade, BALLOON)

    def paint_bird(self) -> None:
        dice = self.dice
        span, x, y = dice.between(6.5, 12), dice.between(9, self.width - 9), dice.between(6, self.horizon - 2)
        lift, tilt = dice.between(-0.1, 0.7) * span, dice.between(-0.2, 0.2) * span
        thick = span * 0.17 + 0.35
        window = self.window(x - span - 2, y - span, x + span + 2, y + span)
        shape = window.ellipse(x, y + thick * 0.3, span * 0.3, thick * 1.2)
        for side in (-1, 1):
            elbow = (x + side * span * 0.5, y - lift + side * tilt * 0.5)
            tip = (x + side * span, y - lift * 0.45 + side * tilt)
            shape = np.minimum(shape, window.rod((x, y), elbow, thick * 1.15, thick))
            shape = np.minimum(shape, window.rod(elbow, tip, thick, thick * 0.45))
        colour = self.lit(dice.pick(((44, 42, 54), (70, 60, 56), (244, 244, 246))), 10)
        window.paint(shape, colour, BIRD)

    # the ground

    def paint_mountains(self) -> None:
        dice = self.dice
        ridges = dice.whole(1, 3)
        rock = dice.colour(dice.pick(((112, 108, 128), (130, 112, 104), (92, 112, 122), (104, 122, 98))), 14)
        for ridge in range(ridges):
            near = (ridge + 1) / ridges
            tall = dice.between(20, 42) * (1.15 - 0.45 * near)
            heights = (self.curve(dice.between(26, 44), 5) - 0.22) * tall * 1.6
            top = self.horizon + 2 - np.maximum(heights, 0.5)
            rocks = self.across(float(top.min()) - 1, self.horizon + 2)
            distance = (top - rocks.y) * 0.8
            # the noise of the rock as relief: bright where it rises away from the light, dark where it falls
            sun_side = -1.6 if self.lit_from_left else 1.6
            rough = rocks.grain(7, 4) - 0.5
            ahead = fractal(rocks.table, (rocks.x + sun_side) / 7 + 11.7, (rocks.y - 0.8) / 7 + 5.9, 4) - 0.5
            facing = np.clip((rough - ahead) * 2.6, -0.5, 0.5)
            colour = rock * self.light * (0.86 + 0.5 * facing)
            snow_line = self.horizon - tall * (0.55 if not self.snow else 0.25) + rough * 12
            white = smooth(snow_line - rocks.y, -1, 2)
            colour = mix(colour, self.light * (0.95 + 0.12 * facing), white * 0.92)
            rocks.paint(distance, mix(colour, self.low_sky, 0.5 - 0.32 * near), MOUNTAIN)

    def paint_grass(self) -> None:
        dice = self.dice
        self.ground = self.horizon - self.curve(40, 2) * dice.between(0, 9)
        farthest = self.horizon - 10
        land = self.across(farthest)
        depth = np.maximum((land.y - farthest) / (HEIGHT - farthest), 0)
        patches = fractal(land.table, (land.x - self.width / 2) / (9 * depth + 3), 3 / (depth + 0.08), 4)
        blades = noise(land.table, land.x / 0.9, land.y / 2.2) - 0.5
        light, dark = (self.lit(c, 14) for c in self.season[:2])
        colour = mix(dark, light, np.clip(smooth(patches, 0.25, 0.75) + blades * 0.5 * depth, 0, 1))
        flower = self.lit(dice.pick(((250, 250, 250), (250, 214, 80), (226, 96, 110), (170, 130, 220))))
        if not self.snow and dice.chance(0.5):
            spots = noise(land.table, land.x / 1.3 + 20.5, land.y / 1.1)
            colour = mix(colour, flower, smooth(spots, 0.84, 0.9) * smooth(depth, 0.1, 0.5) * 0.8)
        haze = (1 - smooth(depth, 0, 0.6)) * 0.45
        land.paint(self.ground - land.y, mix(colour, self.low_sky, haze), GRASS)

    def paint_water(self) -> None:
        """A sea up to the horizon or a lake, which reflects the sky."""
        land, dice = self.across(self.horizon), self.dice
        if dice.chance(0.5):
            shore = self.horizon + dice.between(10, 26)
            edge = shore + (self.curve(34, 3) - 0.5) * 14
            distance = np.maximum(self.horizon - 1.0 - land.y, (land.y - edge) * 0.9)
            self.shore = shore + 7
        else:
            y = dice.between(self.horizon + 12, self.horizon + 34)
            x, wide = dice.between(0, self.width), dice.between(24, 58)
            wave = (fractal(land.table, land.x / 17 + 31.7, land.y / 6 + 2.9, 3) - 0.5) * 9
            distance = land.ellipse(x, y, wide, wide * dice.between(0.16, 0.24)) + wave
            distance = np.maximum(distance, self.ground + 2 - land.y)
        depth = np.clip((land.y - self.horizon) / (HEIGHT - self.horizon), 0, 1)
        ripples = fractal(land.table, land.x / (14 * depth + 3), land.y / (2.4 * depth + 0.7), 3)
        colour = mix(self.low_sky, self.zenith, np.clip(depth * 2.2 + (ripples - 0.5) * 0.7, 0, 1))
        colour = mix(colour, self.lit((40, 104, 136), 22), 0.45) * 0.92
        away = np.abs(land.x - self.sun_x) / (5 + 14 * depth)
        glint = smooth(ripples, 0.5, 0.66) * np.clip(1 - away, 0, 1)
        colour = mix(colour, self.sun_colour, glint * 0.8)
        bank = self.lit((190, 172, 128) if not self.snow else (226, 232, 238), 12)
        land.paint(np.where(land.labels == GRASS, distance - 1.6, 9.0), bank)
        land.paint(distance, mix(colour, WHITE, smooth(ripples, 0.68, 0.8) * 0.3), WATER)

    def paint_road(self) -> None:
        land, dice = self.across(self.shore), self.dice
        far_x, near_x = dice.between(0.2, 0.8) * self.width, dice.between(0.1, 0.9) * self.width
        top, bend = self.shore, dice.between(-26, 26)
        share = np.clip((land.y - top) / (HEIGHT - top), 0, 1)

        def road(y):
            """Middle of the road at `y`, and its slope dx/dy there."""
            share = (y - top) / (HEIGHT - top)
            centre = far_x + (near_x - far_x) * share * share + bend * share * (1 - share)
            slope = (2 * (near_x - far_x) * share + bend * (1 - 2 * share)) / (HEIGHT - top)
            return centre, slope

        self.road = road
        centre, slope = road(np.broadcast_to(land.y, (len(land.y), 1)))
        half = self.road_half = dice.between(12, 20)
        width = 0.8 + half * share
        across = (land.x - centre) / np.sqrt(1 + slope * slope)
        distance = np.maximum(np.abs(across) - width, top + 1 - land.y)
        dirt = dice.chance(0.3)
        base = self.lit((170, 140, 104) if dirt else dice.pick(((92, 92, 98), (124, 122, 122), (70, 72, 82))), 10)
        colour = base * (0.86 + 0.28 * land.grain(1.6, 2, 2.0))
        if dirt:
            ruts = 1 - smooth(np.abs(np.abs(across) / width - 0.5), 0.06, 0.2)
            colour = colour * (1 - 0.2 * ruts)
        else:
            white = self.lit((240, 238, 226), 8)
            dashes = (1 / (share + 0.12) * 2.2) % 1 < 0.55
            middle = (np.abs(across) < width * 0.045) & dashes
            lines = (np.abs(np.abs(across) / width - 0.88) < 0.035) | middle
            colour = np.where(lines, white, colour)
        verge = self.lit((150, 138, 104) if not self.snow else (214, 222, 232), 10)
        land.paint(np.where(land.labels == GRASS, distance - 1.2 * share - 0.2, 9.0), verge, opacity=0.8)
        land.paint(distance, colour, ROAD)

    # what stands on the ground; x is the middle, y the lower edge, and size the scale

    def shadow(self, x: float, y: float, half: float) -> None:
        """On the ground beside a thing, away from the light."""
        x += half * (0.4 if self.lit_from_left else -0.4)
        window = self.window(x - half * 1.4, y - half, x + half * 1.4, y + half)
        distance = window.ellipse(x, y, half * 1.3, max(0.8, half * 0.3))
        window.paint(distance, BLACK, opacity=0.32 * smooth(-distance, -0.5, max(0.5, half * 0.2)))

    def paint_tree(self, x: float, y: float, size: float) -> None:
        dice = self.dice
        tall = size * dice.between(30, 46)
        kind = dice.pick(("fir", "round", "round", "poplar"))
        reach = tall * {"fir": 0.3, "round": 0.42, "poplar": 0.17}[kind]
        self.shadow(x, y, reach * 0.8)
        window = self.window(x - reach * 1.5, y - tall * 1.1, x + reach * 1.5, y + 1)
        trunk = max(0.6, tall * 0.045)
        wood = self.lit(dice.pick(((102, 74, 52), (84, 66, 56), (206, 202, 196))), 8)
        window.paint(window.rod((x, y - trunk), (x, y - tall * 0.5), trunk, trunk * 0.6), wood, TREE)
        light, dark = (self.lit(c, 20) for c in self.season[2:])
        if kind == "fir":
            green = dice.between(0.2, 0.8)
            light, dark = mix(light, self.lit((70, 116, 86)), green), mix(dark, self.lit((24, 62, 50)), green)
            crown = None
            tiers = dice.whole(3, 4)
            for tier in range(tiers):
                top = y - tall + tall * 0.8 * tier / (tiers + 0.6)
                low = top + tall * 0.42
                wide = reach * (0.45 + 0.55 * (tier + 1) / tiers)
                part = window.polygon((x - wide, low), (x, top), (x + wide, low))
                crown = part if crown is None else np.minimum(crown, part)
            crown = np.maximum(crown, window.y - (y - tall * 0.1))
        elif kind == "poplar":
            crown = window.ellipse(x, y - tall * 0.56, reach, tall * 0.46)
        else:
            crown = window.disc(x, y - tall * 0.62, reach * 0.8)
            for _ in range(5):
                lobe = reach * dice.between(0.4, 0.6)
                lobe_x, lobe_y = x + dice.between(-0.62, 0.62) * reach, y - tall * dice.between(0.46, 0.82)
                crown = np.minimum(crown, window.disc(lobe_x, lobe_y, lobe))
        leaves = fractal(window.table, window.x / (1.2 + 2.2 * size) + x, window.y / (1.2 + 2.2 * size) + y, 3)
        crown = crown + (leaves - 0.5) * min(2.4, reach * 0.3)  # a ragged outline
        side = (window.x - x) / reach * (-1 if self.lit_from_left else 1) - (window.y - (y - tall * 0.55)) / tall
        colour = mix(dark, light, np.clip(0.45 + 0.4 * side + (leaves - 0.5) * 1.5, 0, 1))
        if self.snow:
            colour = mix(colour, self.light * 0.97, smooth(leaves + 0.3 * side, 0.5, 0.72) * 0.8)
        window.paint(crown, colour, TREE)

    def paint_house(self, x: float, y: float, size: float) -> None:
        dice = self.dice
        front, side, walls = size * dice.between(17, 24), size * dice.between(18, 32), size * dice.between(13, 22)
        ridge = walls + size * dice.between(9, 15)
        away = dice.pick((-1, 1))  # on which side of the front the long wall is seen
        near = x - away * side / 2  # middle of the front
        left, right = near - front / 2, near + front / 2
        corner, far = (right, right + side) if away > 0 else (left, left - side)
        rise = side * 0.06  # the long wall runs towards the horizon
        self.shadow(x, y, (front + side) * 0.5)
        window = self.window(min(left, far) - 4, y - ridge - 4, max(right, far) + 4, y + 2)
        wall = self.lit(dice.pick(WALLS), 14)
        roof = self.lit(dice.pick(ROOFS), 12)
        if self.snow:
            roof = mix(roof, self.light * 0.95, 0.75)
        texture = 0.93 + 0.14 * window.grain(1.4, 2, 2.5)
        front_light, side_light = (1.0, 0.78) if (away > 0) == self.lit_from_left else (0.8, 1.0)

        def quad(*corners):  # given for a long wall on the right; mirrored for one on the left
            return window.polygon(*(corners if away > 0 else corners[::-1]))

        long_wall = quad((corner, y - walls), (far, y - walls), (far, y - rise), (corner, y))
        window.paint(long_wall, wall * side_light * texture, HOUSE)
        gable = (near, y - ridge)
        gable_wall = window.polygon((left, y), (left, y - walls), gable, (right, y - walls), (right, y))
        window.paint(gable_wall, wall * front_light * texture, HOUSE)
        tiles = (0.86 + 0.2 * smooth(np.abs((window.y * 0.55) % 1 - 0.5), 0.1, 0.4)) * texture
        over = size * 1.6
        if dice.chance(0.6):
            stack = near + away * side * dice.between(0.3, 0.8)
            width = size * 1.7
            chimney = window.box(stack - width, y - ridge - size * 3.5, stack + width, y - walls)
            window.paint(chimney, self.lit((140, 84, 70)), HOUSE)
        eaves = corner + away * over, y - walls + over * 0.7
        slope = quad(gable, (far - away * front * 0.1, y - ridge), (far + away * over, eaves[1] - rise * 0.5), eaves)
        window.paint(slope, roof * side_light * tiles, HOUSE)
        for edge in (left, right):  # the boards along the gable
            foot = (edge + (over if edge > near else -over), y - walls + over * 0.8)
            window.paint(window.rod(gable, foot, max(0.5, size * 0.9)), roof * front_light * 0.85, HOUSE)
        glow = self.night or dice.chance(0.2)
        glass = rgb(1.0, 0.86, 0.5) if glow else self.lit((86, 112, 140), 16)
        frame = self.lit((238, 234, 226), 8)

        def opening(middle, top, half, height, colour):
            outer = window.box(middle - half - size * 0.5, top - size * 0.5, middle + half + size * 0.5, top + height)
            window.paint(outer, frame, HOUSE)
            window.paint(window.box(middle - half, top, middle + half, top + height), colour, HOUSE)

        door = self.lit(dice.pick(PAINTS), 20) * 0.75
        opening(near + front * 0.2 * dice.pick((-1, 1)), y - walls * 0.6, front * 0.1, walls * 0.6, door)
        opening(near, y - walls - (ridge - walls) * 0.35, front * 0.09, walls * 0.24, glass)
        for share in (0.25, 0.7):
            middle = corner + away * side * share
            opening(middle, y - walls * 0.72 - rise * share, side * 0.09, walls * 0.34, glass)

    def paint_car(self, x: float, y: float, size: float) -> None:
        dice = self.dice
        paint = self.lit(dice.pick(PAINTS), 20)
        glass, black = self.lit((70, 90, 112), 12), self.lit((30, 30, 34), 6)
        if self.night or dice.chance(0.4):
            self._paint_car_behind(x, y, size, paint, glass, black)
        else:
            self._paint_car_beside(x, y, size, paint, glass, black)

    def _paint_car_beside(self, x, y, size, paint, glass, black) -> None:
        dice, ahead = self.dice, self.dice.pick((-1, 1))
        half, tall = size * dice.between(13, 17), size * dice.between(10, 13)
        self.shadow(x, y, half * 0.95)
        window = self.window(x - half - 1, y - tall - 1, x + half + 1, y + 1)
        wheel = tall * 0.23
        waist = y - tall * 0.56
        body = window.box(x - half + 1.5 * size, waist + 1.5 * size, x + half - 1.5 * size, y - wheel) - 1.5 * size
        body = np.maximum(body, window.y - (y - wheel * 0.7))
        roof = (x - half * 0.62 * ahead, x - half * 0.4 * ahead, x + half * 0.22 * ahead, x + half * 0.55 * ahead)
        corners = ((roof[0], waist), (roof[1], y - tall), (roof[2], y - tall), (roof[3], waist))

        def cabin(shrink: float):
            middle, centre = (roof[0] + roof[3]) / 2, waist - tall * 0.2
            points = tuple((middle + (a - middle) * shrink, centre + (b - centre) * shrink) for a, b in corners)
            return window.polygon(*(points if ahead > 0 else points[::-1]))

        shade = 1.12 - 0.42 * smooth(window.y, y - tall, y - wheel)
        shape = np.minimum(body, cabin(1.0) - 0.3 * size)
        window.paint(shape, paint * shade, CAR)
        window.paint(np.minimum(cabin(0.76), 9.0), glass, CAR)
        pillar = window.box(x - size * 0.7 - half * 0.1 * ahead, y - tall, x + size * 0.7 - half * 0.1 * ahead, waist)
        window.paint(np.maximum(pillar, cabin(0.9)), paint * 0.95, CAR)
        for place in (-0.58, 0.6):
            centre = (x + place * half, y - wheel)
            window.paint(window.disc(*centre, wheel), black, CAR)
            window.paint(window.disc(*centre, wheel * 0.5), self.lit((176, 178, 184), 6), CAR)
        lamp = window.ellipse(x + ahead * (half - size), waist + tall * 0.16, size * 1.1, size * 0.8)
        window.paint(np.maximum(lamp, shape), rgb(1.0, 0.96, 0.76), CAR)

    def _paint_car_behind(self, x, y, size, paint, glass, black) -> None:
        half, tall = size * self.dice.between(8, 9.5), size * self.dice.between(12, 14)
        self.shadow(x, y, half)
        window = self.window(x - half - 1, y - tall - 1, x + half + 1, y + 1)
        for side in (-1, 1):
            middle = x + side * half * 0.72
            window.paint(window.box(middle - half * 0.17, y - tall * 0.3, middle + half * 0.17, y), black, CAR)
        waist, low = y - tall * 0.58, y - tall * 0.14
        body = window.box(x - half + 1.2 * size, waist + 1.2 * size, x + half - 1.2 * size, low - 1.2 * size)
        cabin = window.polygon(
            (x - half * 0.86, waist + size),
            (x - half * 0.62, y - tall),
            (x + half * 0.62, y - tall),
            (x + half * 0.86, waist + size),
        )
        shade = 1.1 - 0.4 * smooth(window.y, y - tall, low)
        window.paint(np.minimum(body - 1.2 * size, cabin), paint * shade, CAR)
        window.paint(cabin + 1.5 * size, glass, CAR)
        plate = window.box(x - half * 0.34, y - tall * 0.38, x + half * 0.34, y - tall * 0.27)
        window.paint(plate, self.light * 0.9, CAR)
        for side in (-1, 1):
            lamp = window.ellipse(x + side * half * 0.74, waist + tall * 0.14, half * 0.2, tall * 0.07)
            window.paint(lamp, rgb(0.94, 0.16, 0.12), CAR)

    def paint_fence(self, y: float, size: float) -> None:
        """Posts and two rails, along a line that crosses part of the picture."""
        dice = self.dice
        start = dice.between(-0.2, 0.35) * self.width
        end = start + dice.between(0.55, 1.1) * self.width
        slope = dice.between(-0.09, 0.09)
        tall, gap, half = size * dice.between(15, 21), size * dice.between(9, 14), max(1.6, size * 2.1)
        drop = abs(slope) * (end - start)
        window = self.window(start, y - tall - drop - 3, end, y + drop + 2)
        colour = self.lit(dice.pick(((240, 236, 226), (150, 112, 78), (112, 92, 78), (196, 176, 148))), 12)
        colour = colour * (0.86 + 0.28 * window.grain(2.2, 2, 0.4))
        foot = y + slope * (window.x - (start + end) / 2)
        within = np.maximum(start - window.x, window.x - end)
        along = (window.x - start) % gap - gap / 2
        post = np.maximum(np.abs(along) - half, np.maximum(foot - tall - window.y, window.y - foot))
        pointed = foot - tall + np.abs(along) * 0.9
        post = np.maximum(post, (pointed - window.y) * 0.74)
        shadow = np.maximum(np.abs(window.y - foot) - 0.9, within)
        window.paint(shadow, BLACK, opacity=0.25)
        for share in (0.36, 0.76):
            rail = np.abs(window.y - (foot - tall * share)) - max(1.1, size * 1.5)
            window.paint(np.maximum(rail, within), colour * 0.88, FENCE)
        window.paint(np.maximum(post, within), colour, FENCE)

    def place(self, low: float, high: float) -> tuple[float, float]:
        """A place for something to stand, no nearer than depth `low` and no farther than `high`, and its size there."""
        top = max(self.shore, self.horizon + 4)
        y = top + (HEIGHT - top) * self.dice.between(low, high)
        return y, 0.28 + 0.85 * self.depth(y)

    def paint(self) -> Scene:
        dice = self.dice
        self.paint_sky()
        if dice.chance(0.8):
            self.thing += 1
            self.paint_sun()
        self.paint_clouds()
        if dice.chance(0.8):
            self.paint_mountains()
        self.paint_grass()
        if dice.chance(0.65):
            self.paint_water()
        has_road = dice.chance(0.65)
        if has_road:
            self.paint_road()
        for _ in range(dice.pick((0, 1, 1, 2))):
            self.thing += 1
            self.paint_balloon()
        for _ in range(dice.pick((0, 1, 2, 3, 4))):
            self.thing += 1
            self.paint_bird()

        standing = []  # (y, method, arguments): farther things first, nearer ones over them
        for _ in range(dice.pick((0, 1, 1, 2))):
            y, size = self.place(0.02, 0.6)
            standing.append((y, self.paint_house, (dice.between(0, self.width), y, size)))
        for _ in range(dice.whole(1, 6)):
            y, size = self.place(0.0, 0.95)
            standing.append((y, self.paint_tree, (dice.between(0, self.width), y, size)))
        for _ in range(dice.pick((0, 1, 1, 2))):
            y, size = self.place(0.22, 0.95)
            size *= 1.45
            x = dice.between(6, self.width - 6)
            if has_road:
                x = float(self.road(y)[0]) + dice.between(-0.45, 0.45) * self.road_half * self.depth(y)
            standing.append((y, self.paint_car, (x, y, size)))
        if dice.chance(0.6):
            y, size = self.place(0.15, 0.97)
            standing.append((y, self.paint_fence, (y, size)))
        for _, method, arguments in sorted(standing, key=lambda thing: thing[0]):
            self.thing += 1
            method(*arguments)

        grain = dice.table(*self.image.shape) - 0.5
        image = self.image * dice.between(0.92, 1.06) + grain * dice.between(0.01, 0.05)
        image = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
        return Scene(np.ascontiguousarray(image.transpose(1, 2, 0)), self.labels, self.objects)


def paint_scene(seed: int, split: int, index: int, height: int = 128, width: int = 128) -> Scene:
    """The scene of this number: a function of its arguments only, on every machine."""
    return Landscape(Dice((seed, split, index)), height, width).paint()
