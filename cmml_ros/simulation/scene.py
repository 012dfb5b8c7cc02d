"""Walls with airholes: exact truth, and rays that meet exactly that truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import open3d as o3d
import shapely
from numpy.typing import NDArray
from scipy.optimize import brentq

from cmml_ros.errors import SceneError, ShapeError
from cmml_ros.simulation.appearance import Appearance, make_appearance
from cmml_ros.simulation.cavity import Cavity, Shape, make_airhole, make_tie_hole
from cmml_ros.simulation.wall import Kind, Wall

Array = NDArray[np.float64]

NOTHING = -1
WALL = 0

# How often each shape occurs, and its range of depth / diameter.
_SHAPES: dict[Shape, tuple[float, float, float]] = {
    'cap': (0.15, 0.1, 0.8),
    'ellipsoid': (0.15, 0.1, 0.8),
    'irregular': (0.3, 0.2, 0.8),
    'undercut': (0.4, 0.5, 1.3),
}
_PAIR_SHARE = 0.06
_GAP_M = 0.001  # between what belongs to different airholes, touching pairs excepted
_EDGE_M = 0.002  # between an airhole and the end of the wall


@dataclass(frozen=True, eq=False)
class AirholeTruth:
    """One airhole, exactly as every ray sees it; metres, scene frame.

    rim: (n, 3) polygon on the surface, counter-clockwise seen from outside. area_m2: of the rim polygon on the surface.
    major_axis_m, minor_axis_m: of the ellipse with the second moments of the rim polygon. depth_max_m and volume_m3:
    over the rim polygon, down to the first surface seen along the inward normal. void_volume_m3: all that is missing,
    with what an undercut rim hides. normal points out.
    """

    id: int
    shape: Shape
    centre: Array
    centre_developed: Array
    normal: Array
    rim: Array
    area_m2: float
    equivalent_diameter_m: float
    major_axis_m: float
    minor_axis_m: float
    depth_max_m: float
    volume_m3: float
    void_volume_m3: float


@dataclass(frozen=True, eq=False)
class Distractor:
    """Something that is not an airhole and may be called one: kind and outline (n, 2) in developed coordinates."""

    id: int
    kind: str
    outline_developed: Array


@dataclass(frozen=True, eq=False)
class Hits:
    """Where rays end.

    distance_m: (N,) along the ray, inf for nothing. surface_id: (N,) int32, k for airhole k, 0 for the wall (tie holes
    included), -1 for nothing. normals: (N, 3) of the surface, towards the ray. developed: (N, 2) where the ray enters
    the wall surface, NaN for nothing; for a ray into a cavity that is a point inside the rim.
    """

    distance_m: Array
    surface_id: NDArray[np.int32]
    normals: Array
    developed: Array


@dataclass(frozen=True, eq=False)
class Scene:
    """A wall, the cavities in it and its look. cavities[k - 1] belongs to holes[k - 1]; tie holes come after them."""

    wall: Wall
    holes: tuple[AirholeTruth, ...]
    distractors: tuple[Distractor, ...]
    cavities: tuple[Cavity, ...]
    appearance: Appearance

    def cast(self, origins: Array, directions: Array) -> Hits:
        """Where rays from outside the wall end; origins and directions (N, 3), scene frame, of any length but zero.

        Raises ShapeError for arrays of another shape.
        """
        origins, directions = np.asarray(origins, dtype=np.float64), np.asarray(directions, dtype=np.float64)
        if origins.ndim != 2 or origins.shape[1] != 3 or origins.shape != directions.shape:
            raise ShapeError(f'origins and directions must be (N, 3), got {origins.shape} and {directions.shape}')
        directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        distance = self.wall.intersect(origins, directions)
        found = np.flatnonzero(np.isfinite(distance))
        entry = origins[found] + distance[found, None] * directions[found]
        developed = np.full((len(origins), 2), np.nan)
        developed[found] = self.wall.develop(entry)
        normals = np.zeros_like(origins)
        normals[found] = self.wall.normals(developed[found])
        surface_id = np.full(len(origins), NOTHING, dtype=np.int32)
        surface_id[found] = WALL
        cavity = self.find_cavities(developed[found])
        entering = np.flatnonzero(cavity >= 0)
        deeper, hit_normals, hit_cavity = self.cast_inside(entry[entering], directions[found[entering]])
        # A ray through the very edge of a rim may slip between lid and shell: it ends on the edge, on the wall.
        kept = hit_cavity == cavity[entering]
        rows = found[entering[kept]]
        distance[rows] += deeper[kept]
        normals[rows] = hit_normals[kept]
        hole_id = cavity[entering[kept]] + 1
        surface_id[rows] = np.where(hole_id <= len(self.holes), hole_id, WALL)
        return Hits(distance, surface_id, normals, developed)

    def find_cavities(self, developed: Array) -> NDArray[np.int32]:
        """Index into `cavities` of the rim polygon that holds each point (N, 2), -1 for none, (N,)."""
        rays = np.zeros((len(developed), 6), dtype=np.float32)
        rays[:, :2] = developed
        rays[:, 2], rays[:, 5] = 1.0, -1.0
        primitive = self._lids.scene.cast_rays(o3d.core.Tensor.from_numpy(rays))['primitive_ids'].numpy()
        return self._lids.owners(primitive)

    def cast_inside(self, origins: Array, directions: Array) -> tuple[Array, Array, NDArray[np.int32]]:
        """First shell met by rays that start inside a cavity or on its rim plane.

        origins, unit directions: (N, 3). Returns distance (N,), inf where the ray leaves through the rim, normals
        (N, 3) and index into `cavities` (N,), -1 for none.
        """
        rays = np.hstack([origins, directions]).astype(np.float32)
        answer = self._shells.scene.cast_rays(o3d.core.Tensor.from_numpy(rays))
        cavity = self._shells.owners(answer['primitive_ids'].numpy())
        return answer['t_hit'].numpy().astype(np.float64), answer['primitive_normals'].numpy(), cavity

    def shell(self, index: int) -> tuple[Array, NDArray[np.int32]]:
        """Vertices (v, 3) in the scene frame and faces (f, 3) of one cavity; normals point into the void."""
        cavity = self.cavities[index]
        return self.wall.points(cavity.vertices[:, :2], cavity.vertices[:, 2]), cavity.faces

    @cached_property
    def _shells(self) -> _OwnedScene:
        return _OwnedScene([self.shell(index) for index in range(len(self.cavities))])

    @cached_property
    def _lids(self) -> _OwnedScene:
        """The rims as fans of triangles in developed coordinates, at height zero: point in polygon by a ray."""
        lids = []
        for cavity in self.cavities:
            n = len(cavity.rim)
            i = np.arange(n)
            vertices = np.column_stack([np.vstack([cavity.rim, cavity.middle]), np.zeros(n + 1)])
            lids.append((vertices, np.stack([i, (i + 1) % n, np.full(n, n)], axis=1).astype(np.int32)))
        return _OwnedScene(lids)


class _OwnedScene:
    """A RaycastingScene of many meshes that remembers whose each triangle is."""

    def __init__(self, meshes: list[tuple[Array, NDArray[np.int32]]]) -> None:
        self.scene = o3d.t.geometry.RaycastingScene()
        self._owner = np.repeat(np.arange(len(meshes), dtype=np.int32), [len(faces) for _, faces in meshes])
        if not meshes:
            return
        starts = np.cumsum([0] + [len(vertices) for vertices, _ in meshes[:-1]])
        vertices = np.vstack([vertices for vertices, _ in meshes]).astype(np.float32)
        faces = np.vstack([faces + start for (_, faces), start in zip(meshes, starts, strict=True)]).astype(np.uint32)
        self.scene.add_triangles(o3d.core.Tensor.from_numpy(vertices), o3d.core.Tensor.from_numpy(faces))

    def owners(self, primitives: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Index of the mesh of each triangle, -1 where no triangle was met."""
        owner = np.full(len(primitives), -1, dtype=np.int32)
        met = primitives != o3d.t.geometry.RaycastingScene.INVALID_ID
        owner[met] = self._owner[primitives[met]]
        return owner


def make_scene(
    kind: Kind,
    seed: int,
    *,
    width_m: float = 1.0,
    height_m: float = 0.7,
    radius_m: float | None = None,
    airhole_density_per_m2: float = 150.0,
    airhole_count: int | None = None,
    diameter_range_m: tuple[float, float] = (0.002, 0.030),
    distractor_density: float = 1.0,
) -> Scene:
    """A wall with airholes and a look, the same for the same seed.

    radius_m: of a column (0.4 to 1.2 m) or a tunnel (2 to 6 m), drawn when None. airhole_count overrides the density.
    Diameters are log-normal with a median of 6 mm, within diameter_range_m. distractor_density: 0 for a clean wall, 1
    for a usual one. Raises SceneError for a wall that does not exist, or when the airholes do not fit.
    """
    low, high = diameter_range_m
    if not 0 < low <= high:
        raise SceneError(f'diameter_range_m must be 0 < low <= high, got {diameter_range_m}')
    rng, look_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    if kind == 'plane':
        radius_m = math.inf
    elif radius_m is None:
        radius_m = rng.uniform(0.4, 1.2) if kind == 'column' else rng.uniform(2.0, 6.0)
        radius_m = max(radius_m, width_m / math.pi) if kind == 'column' else radius_m
    wall = Wall(kind, width_m, height_m, radius_m)
    count = airhole_count
    if count is None:
        count = int(rng.poisson(airhole_density_per_m2 * width_m * height_m))
    placer = _Placer(wall, rng)
    tie_holes = [placer.add(_draw_tie_hole(rng)) for _ in range(int(rng.poisson(distractor_density * 1.2)))]
    # Large ones first: they find no room later.
    diameters = -np.sort(-np.clip(rng.lognormal(math.log(0.006), 0.55, count), low, high))
    shapes: list[Shape] = []
    cavities: list[Cavity] = []
    weights = np.array([share for share, _, _ in _SHAPES.values()])
    while len(cavities) < count:
        diameter = float(diameters[len(cavities)])
        if rng.random() < _PAIR_SHARE and len(cavities) + 1 < count:
            pair = _draw_pair(diameter, float(diameters[len(cavities) + 1]), rng)
            cavities += placer.add_group([cavity for _, cavity in pair])
            shapes += [shape for shape, _ in pair]
            continue
        shape = list(_SHAPES)[int(rng.choice(len(_SHAPES), p=weights / weights.sum()))]
        _, shallow, deep = _SHAPES[shape]
        cavities.append(placer.add(make_airhole(shape, diameter, rng.uniform(shallow, deep), rng)))
        shapes.append(shape)
    return assemble_scene(wall, shapes, cavities, look_rng, tie_holes=tie_holes, distractor_density=distractor_density)


def assemble_scene(
    wall: Wall,
    shapes: Sequence[Shape],
    cavities: Sequence[Cavity],
    rng: np.random.Generator,
    *,
    tie_holes: Sequence[Cavity] = (),
    distractor_density: float = 0.0,
) -> Scene:
    """`wall` with the given airholes and tie holes where they are, and a look drawn from `rng`.

    shapes[k] names the shape of cavities[k], whose places are developed coordinates; nothing may overlap.
    distractor_density: as in `make_scene`.
    """
    holes = tuple(
        _describe(number, shape, cavity, wall)
        for number, (shape, cavity) in enumerate(zip(shapes, cavities, strict=True), start=1)
    )
    centres = np.array([hole.centre_developed for hole in holes]).reshape(-1, 2)
    radii = np.array([hole.equivalent_diameter_m / 2 for hole in holes])
    appearance = make_appearance(wall, centres, radii, distractor_density, rng)
    outlines = [('tie_hole', cavity.rim) for cavity in tie_holes]
    outlines += [(decal.kind, decal.outline) for decal in appearance.decals]
    distractors = tuple(Distractor(index + 1, kind, outline) for index, (kind, outline) in enumerate(outlines))
    return Scene(wall, holes, distractors, (*cavities, *tie_holes), appearance)


def draw_shape(depth_ratio: float, rng: np.random.Generator) -> Shape:
    """A shape that occurs with this depth / diameter, as often as it does. Raises SceneError when none does."""
    possible = {shape: share for shape, (share, low, high) in _SHAPES.items() if low <= depth_ratio <= high}
    if not possible:
        raise SceneError(f'no airhole has depth / diameter {depth_ratio:g}; use 0.1 to 1.3')
    shares = np.array(list(possible.values()))
    return list(possible)[int(rng.choice(len(shares), p=shares / shares.sum()))]


class _Placer:
    """Finds room for cavities, each inside a circle that nothing else may enter."""

    def __init__(self, wall: Wall, rng: np.random.Generator) -> None:
        self._wall = wall
        self._rng = rng
        self._circles = np.empty((0, 3))

    def add(self, cavity: Cavity) -> Cavity:
        return self.add_group([cavity])[0]

    def add_group(self, cavities: list[Cavity]) -> list[Cavity]:
        """The cavities, which keep their relative positions, at a free place. Raises SceneError when there is none."""
        reach = max(float(np.linalg.norm(cavity.vertices[:, :2], axis=1).max()) for cavity in cavities)
        low = np.full(2, reach + _EDGE_M)
        high = np.array([self._wall.width_m, self._wall.height_m]) - low
        for _ in range(1000 if np.all(high > low) else 0):
            middle = self._rng.uniform(low, high)
            distance = np.linalg.norm(self._circles[:, :2] - middle, axis=1)
            if np.all(distance > self._circles[:, 2] + reach + _GAP_M):
                self._circles = np.vstack([self._circles, [*middle, reach]])
                return [cavity.moved(middle) for cavity in cavities]
        raise SceneError(
            f'no room left on {self._wall.width_m} x {self._wall.height_m} m after {len(self._circles)} airholes or '
            'tie holes; ask for fewer or smaller airholes, or for a larger wall'
        )


def _draw_tie_hole(rng: np.random.Generator) -> Cavity:
    diameter, depth = rng.uniform(0.010, 0.030), rng.uniform(0.010, 0.040)
    kind = rng.choice(['straight', 'cone', 'plug'])
    if kind == 'plug':
        depth = rng.uniform(0.002, 0.008)
    return make_tie_hole(diameter, depth, rng.uniform(0.5, 0.85) if kind == 'cone' else 1.0)


def _draw_pair(first_m: float, second_m: float, rng: np.random.Generator) -> list[tuple[Shape, Cavity]]:
    """Two airholes without overhang, a wall of 0.1 to 0.5 mm between their rims."""
    drawn: list[tuple[Shape, Cavity]] = []
    for diameter in (first_m, second_m):
        shape: Shape = 'cap' if rng.random() < 0.5 else 'ellipsoid'
        _, shallow, deep = _SHAPES[shape]
        drawn.append((shape, make_airhole(shape, diameter, rng.uniform(shallow, deep), rng)))
    (shape_a, a), (shape_b, b) = drawn
    angle, gap = rng.uniform(0, 2 * math.pi), rng.uniform(0.0001, 0.0005)
    direction = np.array([math.cos(angle), math.sin(angle)])
    ring_a, ring_b = shapely.Polygon(a.rim), shapely.Polygon(b.rim)

    def excess(distance: float) -> float:
        moved = shapely.transform(ring_b, lambda points: points + distance * direction)
        if ring_a.intersects(moved):
            return -gap - float(ring_a.intersection(moved).area)
        return float(ring_a.distance(moved)) - gap

    far = a.reach_m + b.reach_m + 2 * gap
    distance = brentq(excess, 0.0, far, xtol=1e-7)
    middle = 0.5 * distance * direction
    return [(shape_a, a.moved(-middle)), (shape_b, b.moved(middle))]


def _describe(number: int, shape: Shape, cavity: Cavity, wall: Wall) -> AirholeTruth:
    rim = shapely.Polygon(cavity.rim)
    centre = np.array(rim.centroid.coords[0])
    major, minor = _axes(cavity.rim)
    volume, void = cavity.volumes(wall.curvature_per_m)
    return AirholeTruth(
        id=number,
        shape=shape,
        centre=wall.points(centre[None])[0],
        centre_developed=centre,
        normal=wall.normals(centre[None])[0],
        rim=wall.points(cavity.rim),
        area_m2=cavity.rim_area_m2,
        equivalent_diameter_m=2 * math.sqrt(cavity.rim_area_m2 / math.pi),
        major_axis_m=major,
        minor_axis_m=minor,
        depth_max_m=cavity.depth_max_m,
        volume_m3=volume,
        void_volume_m3=void,
    )


def _axes(polygon: Array) -> tuple[float, float]:
    """Full axes of the ellipse with the second moments of a polygon (n, 2), longer first."""
    middle = np.array(shapely.Polygon(polygon).centroid.coords[0])
    a = polygon - middle
    b = np.roll(a, -1, axis=0)
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    # Over a triangle (middle, a, b) the integral of x x^T is |a x b| / 24 ((a + b)(a + b)^T + a a^T + b b^T).
    moments = sum(np.einsum('n,ni,nj->ij', cross / 24, x, x) for x in (a + b, a, b))
    small, large = np.linalg.eigvalsh(moments / (0.5 * cross.sum()))
    return 4 * math.sqrt(large), 4 * math.sqrt(small)
