"""Write rosbag2 recordings (MCAP, zstd) without ROS."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import mcap.writer
import yaml
import zstandard
from mcap.writer import Writer

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.errors import BagError

# Version 9 would need a record at the end of each file to say so, which an interrupted file lacks: without it
# rosbag2 takes the channels for version 8.
_METADATA_VERSION = 8
_INFINITE = {'sec': 9223372036, 'nsec': 854775807}  # what rosbag2 writes for RMW_DURATION_INFINITE
_RAW = (bytes, bytearray, memoryview)
# Transforms of many publishers share a latched topic; of the others the last message is the state.
_MANY_LATCHED = ('tf2_msgs/msg/TFMessage',)
_LATCHED_KEPT = 100
_AWAITED_NS = 60 * 1_000_000_000
_ZSTD_LEVEL = 1


class _Zstandard:
    """zstandard with another level: mcap's writer has no setting for it.

    At the default, 3, pictures are not smaller but take eight times as long, which is half a core at 10 Hz.
    """

    @staticmethod
    def compress(data: bytes) -> bytes:
        return zstandard.compress(data, _ZSTD_LEVEL)

    def __getattr__(self, name: str) -> Any:
        return getattr(zstandard, name)


mcap.writer.zstandard = _Zstandard()  # type: ignore[assignment, attr-defined]


@dataclass
class _Topic:
    name: str
    type_name: str
    definition: str
    type_hash: str
    qos: str
    latched: deque[tuple[bytes, int]] | None
    message_count: int = 0


@dataclass
class _File:
    """One file of the bag: what metadata.yaml tells about it."""

    path: Path
    stream: IO[bytes]
    mcap: Writer
    channels: dict[str, int] = field(default_factory=dict)
    schemas: dict[str, int] = field(default_factory=dict)
    first_ns: int | None = None
    last_ns: int = 0
    message_count: int = 0
    size: int = 0

    def information(self) -> dict[str, Any]:
        return {
            'path': self.path.name,
            'starting_time': {'nanoseconds_since_epoch': self.first_ns or 0},
            'duration': {'nanoseconds': self.last_ns - (self.first_ns or self.last_ns)},
            'message_count': self.message_count,
        }


class BagWriter:
    """A new rosbag2 folder at `path`, to be used as a context manager.

    A file ends, and the next begins with the latched messages so far, when it has `max_file_bytes` or when its messages
    span `max_file_s`; 0 is no limit. So that every file can be used alone, the first does not end by time before each
    of the latched topics `awaited` has had a message, unless that takes more than a minute. Leaving the context, with
    or without an exception, closes the bag with its index and metadata, so that everything written can be read. After
    a kill everything up to the last `flush`, or up to the last chunk of about 1 MB, can be read. Not thread-safe: one
    thread writes.
    Raises BagError when `path` exists or cannot be written.
    """

    def __init__(
        self, path: Path, *, max_file_bytes: int = 0, max_file_s: float = 0.0, awaited: Collection[str] = ()
    ) -> None:
        self.path = path
        self._awaited = set(awaited)
        self._max_file_bytes = max_file_bytes
        self._max_file_ns = round(max_file_s * 1e9)
        self._typestore = make_typestore()
        self.types = self._typestore.types
        self._topics: dict[str, _Topic] = {}
        self._files: list[_File] = []
        self._closed = False
        try:
            path.mkdir(parents=True)
            self._begin_file()
        except FileExistsError:
            raise BagError(f'{path} exists already; name a new folder or remove it') from None
        except OSError as error:
            raise BagError(f'{path}: cannot be written ({error.strerror}); check the path') from None

    @property
    def written_bytes(self) -> int:
        """Size of all files so far, without what waits in the last chunk."""
        return sum(file.size for file in self._files)

    @property
    def file_count(self) -> int:
        """Files begun so far."""
        return len(self._files)

    def register(self, definitions: Mapping[str, Any]) -> None:
        """Learn message types beyond those of the distribution, as rosbags' get_types_from_msg makes them."""
        self._typestore.register({name: value for name, value in definitions.items() if name not in self.types})

    def add_topic(self, name: str, type_name: str, *, latched: bool = False, reliable: bool = True) -> None:
        """Declare a topic, for example ('/camera/image', 'sensor_msgs/msg/Image').

        latched: offered as transient local, so that `ros2 bag play` keeps the last messages for late subscribers, and
        repeated at the head of every file. reliable: how it was offered.
        Raises BagError for an unknown type, or when the topic is there already.
        """
        if name in self._topics:
            raise BagError(f'{self.path}: topic {name} was added twice')
        if type_name not in self.types:
            raise BagError(f'{self.path}: unknown message type {type_name} for {name}; write it as package/msg/Type')
        definition, _ = self._typestore.generate_msgdef(type_name, ros_version=2)
        kept = _LATCHED_KEPT if type_name in _MANY_LATCHED else 1
        topic = self._topics[name] = _Topic(
            name,
            type_name,
            definition,
            self._typestore.hash_rihs01(type_name),
            _make_qos(latched, reliable),
            deque(maxlen=kept) if latched else None,
        )
        self._add_channel(topic)

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Append one message: an object of `types`, or the CDR bytes of a message as they came over DDS.

        stamp_ns: when it was received. Raises BagError for an unknown topic, a closed bag, or a full disk.
        """
        if self._closed:
            raise BagError(f'{self.path} is closed')
        known = self._topics.get(topic)
        if known is None:
            raise BagError(f'{self.path}: topic {topic} was not added')
        if isinstance(message, _RAW):
            data = bytes(message)
        else:
            data = bytes(self._typestore.serialize_cdr(message, known.type_name))
        try:
            if self._is_full(stamp_ns):
                self._next_file(stamp_ns)
            self._write(known, data, stamp_ns)
        except OSError as error:
            self._abandon()
            raise BagError(f'{self.path}: {error.strerror}; what was written before is kept') from None
        self._awaited.discard(topic)
        if known.latched is not None and all(data != earlier for earlier, _ in known.latched):
            known.latched.append((data, stamp_ns))

    def flush(self) -> None:
        """Hand everything written so far to the system. Raises BagError for a full disk."""
        if self._closed:
            return
        try:
            self._files[-1].mcap.flush()  # type: ignore[no-untyped-call]
        except OSError as error:
            self._abandon()
            raise BagError(f'{self.path}: {error.strerror}; what was written before is kept') from None

    def close(self) -> None:
        """Write index and metadata. Further calls do nothing."""
        if self._closed:
            return
        try:
            self._end_file()
            self._closed = True
            self._write_metadata()
        except OSError as error:
            self._abandon()
            raise BagError(f'{self.path}: not closed ({error.strerror}); `ros2 bag reindex` restores it') from None

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _is_full(self, stamp_ns: int) -> bool:
        file = self._files[-1]
        if file.first_ns is None:
            return False
        age_ns = stamp_ns - file.first_ns
        too_large = 0 < self._max_file_bytes <= file.stream.tell()
        awaits = self._awaited and len(self._files) == 1 and age_ns < _AWAITED_NS
        return too_large or (0 < self._max_file_ns <= age_ns and not awaits)

    def _begin_file(self) -> None:
        path = self.path / f'{self.path.name}_{len(self._files)}.mcap'
        stream = path.open('xb')
        self._files.append(_File(path, stream, Writer(stream)))
        self._files[-1].mcap.start(profile='ros2', library='cmml_ros')
        for topic in self._topics.values():
            self._add_channel(topic)

    def _end_file(self) -> None:
        file = self._files[-1]
        file.mcap.finish()  # type: ignore[no-untyped-call]
        file.size = file.stream.tell()
        file.stream.close()

    def _next_file(self, stamp_ns: int) -> None:
        self._end_file()
        self._begin_file()
        for topic in self._topics.values():
            for data, published_ns in topic.latched or ():
                self._write(topic, data, stamp_ns, published_ns)

    def _add_channel(self, topic: _Topic) -> None:
        file = self._files[-1]
        if topic.type_name not in file.schemas:
            file.schemas[topic.type_name] = file.mcap.register_schema(
                topic.type_name, 'ros2msg', topic.definition.encode()
            )
        about = {
            'offered_qos_profiles': topic.qos,
            'topic_type_hash': topic.type_hash,
        }
        file.channels[topic.name] = file.mcap.register_channel(topic.name, 'cdr', file.schemas[topic.type_name], about)

    def _write(self, topic: _Topic, data: bytes, stamp_ns: int, published_ns: int | None = None) -> None:
        file = self._files[-1]
        file.mcap.add_message(file.channels[topic.name], stamp_ns, data, published_ns or stamp_ns)
        file.first_ns = stamp_ns if file.first_ns is None else min(file.first_ns, stamp_ns)
        file.last_ns = max(file.last_ns, stamp_ns)
        file.message_count += 1
        file.size = file.stream.tell()
        topic.message_count += 1

    def _abandon(self) -> None:
        """Leave the file as it is: its writer does not know any more what of it is on the disk."""
        self._closed = True
        with contextlib.suppress(OSError):  # its buffer may not fit a full disk either
            self._files[-1].stream.close()

    def _write_metadata(self) -> None:
        """What `ros2 bag` wants to know, written beside it first, so that it is whole or not there."""
        first_ns = min((file.first_ns for file in self._files if file.first_ns is not None), default=0)
        information = {
            'version': _METADATA_VERSION,
            'storage_identifier': 'mcap',
            'duration': {'nanoseconds': max(max(file.last_ns for file in self._files) - first_ns, 0)},
            'starting_time': {'nanoseconds_since_epoch': first_ns},
            'message_count': sum(file.message_count for file in self._files),
            'topics_with_message_count': [
                {
                    'topic_metadata': {
                        'name': topic.name,
                        'type': topic.type_name,
                        'serialization_format': 'cdr',
                        'offered_qos_profiles': topic.qos,
                        'type_description_hash': topic.type_hash,
                    },
                    'message_count': topic.message_count,
                }
                for topic in self._topics.values()
            ],
            'compression_format': '',  # MCAP's own chunks are compressed, which its readers know
            'compression_mode': '',
            'relative_file_paths': [file.path.name for file in self._files],
            'files': [file.information() for file in self._files],
            'custom_data': {},
            'ros_distro': os.environ.get('ROS_DISTRO', 'unknown'),
        }
        document = yaml.safe_dump({'rosbag2_bagfile_information': information}, sort_keys=False)
        path = self.path / 'metadata.yaml'
        temporary = path.with_suffix('.yaml.tmp')
        temporary.write_text(document, encoding='utf-8')
        temporary.replace(path)


def _make_qos(latched: bool, reliable: bool) -> str:
    """The offered profile in the numbers of rmw/types.h, as YAML."""
    profile = {
        'history': 1,  # keep last
        'depth': _LATCHED_KEPT if latched else 10,
        'reliability': 1 if reliable else 2,  # 2: best effort
        'durability': 1 if latched else 2,  # 1: transient local, 2: volatile
        'deadline': dict(_INFINITE),
        'lifespan': dict(_INFINITE),
        'liveliness': 1,  # automatic
        'liveliness_lease_duration': dict(_INFINITE),
        'avoid_ros_namespace_conventions': False,
    }
    return yaml.safe_dump([profile], sort_keys=False)
