"""Pairs each image with the nearest cloud: pure, bounded, a function of what arrives in which order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

from cmml_ros.config import SyncConfig

ImageT = TypeVar('ImageT')
CloudT = TypeVar('CloudT')

# A message this much older than the newest of its topic is no longer a late one: time has jumped back.
MAX_DISORDER_NS = 200_000_000


@dataclass(frozen=True)
class Pair(Generic[ImageT, CloudT]):
    """One image and the cloud nearest to it, or None and the reason.

    Times are stamps with the sensor's offset added, the time base of pairing and of transforms.
    """

    image: ImageT
    image_time_ns: int
    cloud: CloudT | None = None
    cloud_time_ns: int | None = None
    reason: str = ''


@dataclass(eq=False)
class _QueuedCloud(Generic[CloudT]):
    time_ns: int
    payload: CloudT
    queued: bool = True
    candidate_of: int = 0  # waiting images that have no nearer cloud
    paired: bool = False


@dataclass(eq=False)
class _WaitingImage(Generic[ImageT, CloudT]):
    time_ns: int
    payload: ImageT
    evicted_ns: int | None  # newest cloud that had left the full queue before the image came
    nearest: _QueuedCloud[CloudT] | None = None


class Synchronizer(Generic[ImageT, CloudT]):
    """Pairs each image with the nearest cloud within `tolerance_s` after the offset of each sensor.

    An image waits until no nearer cloud can come: a cloud of the same time is there, or one later by the tolerance.
    So a cloud that comes out of order still pairs with every image that waits. One cloud may serve several images.
    Images come out in the order of their stamps; one that comes after a later one has left is dropped.
    When more than `queue_size` images wait, the oldest leaves: with its cloud when one at least as late is there, else
    without. At most `queue_size` clouds wait for images, and as many again are held by waiting images.
    A message older than the newest of its topic by more than MAX_DISORDER_NS means that time has jumped back: all that
    waits is dropped. Every message that is not used is counted in `counts` by reason.
    """

    def __init__(self, config: SyncConfig) -> None:
        self._tolerance_ns = round(config.tolerance_s * 1e9)
        self._image_offset_ns = round(config.camera_offset_s * 1e9)
        self._cloud_offset_ns = round(config.lidar_offset_s * 1e9)
        self._queue_size = config.queue_size
        self.counts: Counter[str] = Counter()
        self._reset()

    def _reset(self) -> None:
        self._images: list[_WaitingImage[ImageT, CloudT]] = []
        self._clouds: list[_QueuedCloud[CloudT]] = []
        self._newest_image_ns: int | None = None
        self._newest_cloud_ns: int | None = None
        self._last_settled_ns: int | None = None
        self._evicted_ns: int | None = None

    def __len__(self) -> int:
        """Images that wait."""
        return len(self._images)

    @property
    def newest_time_ns(self) -> int | None:
        """The time that the sensors have reached, None before the first message."""
        return max((t for t in (self._newest_image_ns, self._newest_cloud_ns) if t is not None), default=None)

    def add_image(self, stamp_ns: int, payload: ImageT) -> list[Pair[ImageT, CloudT]]:
        """The pairs that this image settles."""
        time_ns = stamp_ns + self._image_offset_ns
        if _has_jumped(time_ns, self._newest_image_ns):
            self._jump()
        if self._last_settled_ns is not None and time_ns < self._last_settled_ns:
            self.counts['image out of order'] += 1
            return []
        index = bisect_left(self._images, time_ns, key=_time)
        waiting = index < len(self._images) and self._images[index].time_ns == time_ns
        if waiting or time_ns == self._last_settled_ns:
            self.counts['image stamp seen before'] += 1
            return []
        self._newest_image_ns = _later(time_ns, self._newest_image_ns)
        image: _WaitingImage[ImageT, CloudT] = _WaitingImage(time_ns, payload, self._evicted_ns)
        self._images.insert(index, image)
        for cloud in self._clouds:
            self._offer(cloud, image)
        return self._settle()

    def add_cloud(self, stamp_ns: int, payload: CloudT) -> list[Pair[ImageT, CloudT]]:
        """The pairs that this cloud settles."""
        time_ns = stamp_ns + self._cloud_offset_ns
        if _has_jumped(time_ns, self._newest_cloud_ns):
            self._jump()
        if any(cloud.time_ns == time_ns for cloud in self._clouds):
            self.counts['cloud stamp seen before'] += 1
            return []
        self._newest_cloud_ns = _later(time_ns, self._newest_cloud_ns)
        cloud = _QueuedCloud(time_ns, payload)
        insort(self._clouds, cloud, key=_time)
        for image in self._images:
            self._offer(cloud, image)
        pairs = self._settle()
        if len(self._clouds) > self._queue_size:
            self._evicted_ns = _later(self._clouds[0].time_ns, self._evicted_ns)
            self._remove_cloud()
        return pairs

    def release(self) -> list[Pair[ImageT, CloudT]]:
        """Pairs of images that have a cloud within the tolerance, and of those before them: no nearer one will come.

        An image without such a cloud goes on waiting for it: some sensors need many seconds for a scan.
        """
        near = [number for number, image in enumerate(self._images) if not self._explain_missing(image, forced=False)]
        count = near[-1] + 1 if near else 0
        pairs = [self._pair(image) for image in self._images[:count]]
        del self._images[:count]
        return pairs

    def flush(self) -> list[Pair[ImageT, CloudT]]:
        """The pairs of all images that wait: nothing more will come."""
        pairs = [self._pair(image) for image in self._images]
        self._images.clear()
        while self._clouds:
            self._remove_cloud()
        return pairs

    def _jump(self) -> None:
        self.counts['time jumped back'] += 1
        self.counts['image lost when time jumped back'] += len(self._images)
        for image in self._images:
            if image.nearest is not None:
                self._release(image.nearest)
        while self._clouds:
            self._remove_cloud()
        self._reset()

    def _offer(self, cloud: _QueuedCloud[CloudT], image: _WaitingImage[ImageT, CloudT]) -> None:
        def distance(candidate: _QueuedCloud[CloudT]) -> tuple[int, int]:
            return abs(candidate.time_ns - image.time_ns), candidate.time_ns  # of two equally near the earlier

        previous = image.nearest
        if previous is not None:
            if distance(previous) <= distance(cloud):
                return
            self._release(previous)
        image.nearest = cloud
        cloud.candidate_of += 1

    def _settle(self) -> list[Pair[ImageT, CloudT]]:
        pairs = []
        while self._images:
            image = self._images[0]
            final = self._newest_cloud_ns is not None and self._newest_cloud_ns >= image.time_ns + self._tolerance_ns
            exact = image.nearest is not None and image.nearest.time_ns == image.time_ns
            if not (final or exact or len(self._images) > self._queue_size):
                break
            pairs.append(self._pair(self._images.pop(0), forced=not (final or exact)))
        if self._last_settled_ns is not None:
            while self._clouds and self._clouds[0].time_ns < self._last_settled_ns - self._tolerance_ns:
                self._remove_cloud()
        return pairs

    def _pair(self, image: _WaitingImage[ImageT, CloudT], forced: bool = False) -> Pair[ImageT, CloudT]:
        self._last_settled_ns = image.time_ns
        cloud, reason = image.nearest, self._explain_missing(image, forced)
        if cloud is not None:
            cloud.paired |= not reason
            self._release(cloud)
        if cloud is None or reason:
            self.counts['image without cloud'] += 1
            return Pair(image.payload, image.time_ns, reason=reason)
        return Pair(image.payload, image.time_ns, cloud.payload, cloud.time_ns)

    def _explain_missing(self, image: _WaitingImage[ImageT, CloudT], forced: bool) -> str:
        """Why the image has no cloud; empty when it has one."""
        if image.nearest is None or self._newest_cloud_ns is None:
            return 'no cloud has come'
        behind_ns = image.time_ns - self._newest_cloud_ns
        if forced and behind_ns > 0:
            late_s = behind_ns * 1e-9
            return (
                f'{self._queue_size} images wait and the newest cloud is {late_s:.3f} s behind; raise sync.queue_size'
            )
        offset_ns = image.nearest.time_ns - image.time_ns
        if abs(offset_ns) > self._tolerance_ns:
            tolerance_s = self._tolerance_ns * 1e-9
            return f'the nearest cloud is {offset_ns * 1e-9:+.3f} s from the image, tolerance {tolerance_s:g} s'
        if image.evicted_ns is not None and abs(image.evicted_ns - image.time_ns) < abs(offset_ns):
            return f'the nearest cloud had left before the image came; raise sync.queue_size from {self._queue_size}'
        return ''

    def _release(self, cloud: _QueuedCloud[CloudT]) -> None:
        """One waiting image less holds the cloud."""
        cloud.candidate_of -= 1
        self._count_unused(cloud)

    def _remove_cloud(self) -> None:
        cloud = self._clouds.pop(0)
        cloud.queued = False
        self._count_unused(cloud)

    def _count_unused(self, cloud: _QueuedCloud[CloudT]) -> None:
        if not (cloud.queued or cloud.candidate_of or cloud.paired):
            self.counts['cloud without image'] += 1


def _time(entry: _QueuedCloud[CloudT] | _WaitingImage[ImageT, CloudT]) -> int:
    return entry.time_ns


def _later(time_ns: int, other_ns: int | None) -> int:
    return time_ns if other_ns is None else max(time_ns, other_ns)


def _has_jumped(time_ns: int, newest_ns: int | None) -> bool:
    return newest_ns is not None and time_ns < newest_ns - MAX_DISORDER_NS
