"""A tree of stamped transforms that answers at a sensor's stamp, or says exactly why it cannot."""

from __future__ import annotations

import difflib
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from cmml_ros.errors import TransformError
from cmml_ros.geometry.transforms import SE3


@dataclass(frozen=True)
class StampedTransform:
    """Pose of the frame `child` in the frame `parent` at one stamp."""

    parent: str
    child: str
    stamp_ns: int
    T_parent_child: SE3


class _Edge:
    """What is known about the pose of one child frame over time, sorted by stamp."""

    def __init__(self, static: bool) -> None:
        self.static = static
        self.stamps_ns: list[int] = []
        self.transforms: list[StampedTransform] = []

    def insert(self, transform: StampedTransform, history_ns: int) -> None:
        stamp_ns = transform.stamp_ns
        if self.stamps_ns and stamp_ns < self.stamps_ns[-1] - history_ns:
            # Older than everything we would keep: the clock of this publisher was set back, and we follow it.
            self.stamps_ns, self.transforms = [], []
        index = bisect_left(self.stamps_ns, stamp_ns)
        if index < len(self.stamps_ns) and self.stamps_ns[index] == stamp_ns:
            self.transforms[index] = transform
            return
        self.stamps_ns.insert(index, stamp_ns)
        self.transforms.insert(index, transform)
        # The last one before the window stays, so that the whole window can be interpolated.
        expired = max(bisect_left(self.stamps_ns, self.stamps_ns[-1] - history_ns) - 1, 0)
        del self.stamps_ns[:expired], self.transforms[:expired]

    def parent(self, stamp_ns: int) -> str:
        """The parent at the stamp, or at the nearest one that is known."""
        return self.transforms[max(bisect_right(self.stamps_ns, stamp_ns) - 1, 0)].parent

    def at(self, stamp_ns: int) -> SE3:
        if self.static:
            return self.transforms[0].T_parent_child
        index = bisect_right(self.stamps_ns, stamp_ns) - 1
        if index >= 0 and self.stamps_ns[index] == stamp_ns:
            return self.transforms[index].T_parent_child
        if index < 0 or index + 1 == len(self.stamps_ns):
            nearest = self.transforms[max(index, 0)]
            raise TransformError(
                f'{nearest.parent} -> {nearest.child}: known from {_seconds(self.stamps_ns[0])} to '
                f'{_seconds(self.stamps_ns[-1])}, asked for {_seconds(stamp_ns)}'
            )
        before, after = self.transforms[index], self.transforms[index + 1]
        if before.parent != after.parent:
            raise TransformError(
                f'{before.parent} -> {before.child}: the parent changed to {after.parent} between '
                f'{_seconds(before.stamp_ns)} and {_seconds(after.stamp_ns)}, asked for {_seconds(stamp_ns)}'
            )
        fraction = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
        return before.T_parent_child.interpolate(after.T_parent_child, fraction)


# More frames than any robot has: a publisher that makes up names must not fill the memory.
_MAX_FRAMES = 2000
# Among more frames nobody looks for the one that was meant.
_MAX_HINTED = 200
_MAX_DESCRIBED = 10


class TransformBuffer:
    """Transforms between frames over the last `history_s` seconds, interpolated, never extrapolated."""

    def __init__(self, history_s: float) -> None:
        self._history_ns = round(history_s * 1e9)
        self._edges: dict[str, _Edge] = {}
        # What is said of an unknown frame until the tree changes: it is asked for with every message.
        self._unknown: dict[str, str] = {}

    def set(self, transform: StampedTransform, static: bool) -> None:
        """Learn one transform; a static one holds at every stamp.

        Raises TransformError when it would close a loop, and for a new frame when there are too many.
        """
        path = [transform.child, transform.parent]
        while path[-1] != transform.child and path[-1] in self._edges:
            path.append(self._edges[path[-1]].transforms[-1].parent)
        if path[-1] == transform.child:
            raise TransformError(
                f'{transform.parent} -> {transform.child}: would close the loop {" <- ".join(path)}; '
                'two publishers disagree about the tree'
            )
        edge = self._edges.get(transform.child)
        if edge is None and len(self._edges) >= _MAX_FRAMES:
            raise TransformError(
                f'{transform.parent} -> {transform.child}: {_MAX_FRAMES} frames are known already; '
                'does a publisher give its frames ever new names?'
            )
        if edge is None or edge.transforms[-1].parent != transform.parent:
            self._unknown.clear()
        if edge is None or static or edge.static:
            edge = self._edges[transform.child] = _Edge(static)
        edge.insert(transform, self._history_ns)

    def lookup(self, target: str, source: str, stamp_ns: int) -> SE3:
        """T_target_source at the stamp.

        Raises TransformError that names the unknown frame, the two separate trees, or the edge and the interval in
        which it is known.
        """
        if target == source:
            return SE3.identity()
        target_path = self._path_to_root(target, stamp_ns)
        source_path = self._path_to_root(source, stamp_ns)
        common = next((frame for frame in source_path if frame in target_path), None)
        if common is None:
            raise TransformError(
                f'{target} and {source} are not connected: {target} hangs below {target_path[-1]}, '
                f'{source} below {source_path[-1]}; is a publisher of /tf or /tf_static missing?'
            )
        T_common_target = self._descend(target_path[: target_path.index(common)], stamp_ns)
        T_common_source = self._descend(source_path[: source_path.index(common)], stamp_ns)
        return T_common_target.inverse() @ T_common_source

    def knows(self, frame: str) -> bool:
        """Whether any transform names the frame."""
        if frame in self._edges or frame in self._unknown:
            return frame in self._edges
        edges = self._edges.values()
        return any(edge.transforms[-1].parent == frame for edge in edges) or any(
            transform.parent == frame for edge in edges for transform in edge.transforms
        )

    def clear(self) -> None:
        """Forget what moves; static transforms are sent only once and stay."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}
        self._unknown.clear()

    def _path_to_root(self, frame: str, stamp_ns: int) -> list[str]:
        if not self.knows(frame):
            if frame not in self._unknown:
                if len(self._unknown) >= _MAX_DESCRIBED:
                    self._unknown.clear()
                self._unknown[frame] = self._describe_unknown(frame)
            raise TransformError(self._unknown[frame])
        path = [frame]
        while path[-1] in self._edges:
            parent = self._edges[path[-1]].parent(stamp_ns)
            if parent in path:
                raise TransformError(f'loop in the tree at {_seconds(stamp_ns)}: {" <- ".join([*path, parent])}')
            path.append(parent)
        return path

    def _descend(self, path: list[str], stamp_ns: int) -> SE3:
        """T_common_first for a path that climbs from its first frame to just below the common one."""
        T_common_frame = SE3.identity()
        for child in reversed(path):
            T_common_frame = T_common_frame @ self._edges[child].at(stamp_ns)
        return T_common_frame

    def _describe_unknown(self, frame: str) -> str:
        if not frame:
            return 'frame "" is unknown: the driver does not fill header.frame_id'
        known = sorted({*self._edges, *(edge.transforms[-1].parent for edge in self._edges.values())})
        if not known:
            return f'frame "{frame}" is unknown: nothing was received on /tf or /tf_static'
        close = difflib.get_close_matches(frame, known, n=1) if len(known) <= _MAX_HINTED else []
        hint = f'; did you mean "{close[0]}"?' if close else f'; known are {", ".join(known[:10])}'
        return f'frame "{frame}" is unknown{hint}'


def _seconds(stamp_ns: int) -> str:
    return f'{stamp_ns * 1e-9:.3f} s'
