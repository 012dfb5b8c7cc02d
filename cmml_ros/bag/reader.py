"""Read rosbag2 recordings without ROS: MCAP and SQLite, compressed, split, interrupted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import zstandard
from mcap.exceptions import EndOfFile
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.interfaces.typing import Typesdict
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.errors import BagError

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
CAMERA_INFO_TYPES = ('sensor_msgs/msg/CameraInfo',)
POINTS_TYPES = ('sensor_msgs/msg/PointCloud2',)
TRANSFORM_TYPE = 'tf2_msgs/msg/TFMessage'

_DEPTH = re.compile(r'(aligned_)?depth(_registered|_to_\w+|_image|_raw)?|compressedDepth')
# What range sensors publish in place of clouds: scans, and packets of Livox, Velodyne, Ouster, Hesai and RoboSense.
_OTHER_RANGES = re.compile(r'/(\w*Scan|PointCloud|CustomMsg|PacketMsg|UdpFrame)$')
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
_NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, '')
_DEFINITION_FORMATS = {'ros2msg': MessageDefinitionFormat.MSG, 'ros2idl': MessageDefinitionFormat.IDL}


class BagMessage(NamedTuple):
    """One recorded message: topic, decoded message, and when the recorder received it."""

    topic: str
    message: Any
    stamp_ns: int


@dataclass(frozen=True)
class SensorTopics:
    """Which topics hold what the pipeline needs; points is None in a bag without any cloud."""

    image: str
    camera_info: str
    points: str | None


class BagReader:
    """A rosbag2 folder, or one .mcap or .db3 file, to be used as a context manager.

    `warnings` says what is unusual about the bag, `undecodable` counts messages by topic that could not be decoded
    and were left out. Raises BagError when there is no readable bag at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.undecodable: Counter[str] = Counter()
        self._damaged: list[str] = []  # files of which nothing can be read
        self._sources = self._open(path)
        self._find_logs(path)
        self._typestores: dict[str, Typestore] = {}
        self._definitions: dict[str, MessageDefinition] = {}
        self._types: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        for topic in (topic for source in self._sources for topic in source.topics):
            known_type = self._types.setdefault(topic.name, topic.type_name)
            if known_type != topic.type_name:
                raise BagError(f'{path}: {topic.name} holds both {known_type} and {topic.type_name}')
            if topic.definition.format is not MessageDefinitionFormat.NONE:
                self._definitions.setdefault(topic.type_name, topic.definition)
            self._counts[topic.name] += topic.message_count

    def topics(self) -> dict[str, str]:
        """Message type by topic name, sorted."""
        return dict(sorted(self._types.items()))

    def count(self, topics: Collection[str]) -> int:
        """How many messages `topics` hold together."""
        return sum(self._counts[topic] for topic in topics)

    def find_topic(self, types: Sequence[str], name: str | None, option: str) -> str:
        """The topic called `name`, or else the only one of `types` that holds messages.

        A transport such as image/compressed does not count beside its raw topic, nor does a depth image.
        option: how the user can name a topic, for the error.
        Raises BagError when there is no such topic, or more than one.
        """
        if name is not None:
            name = '/' + name.lstrip('/')
            if self._types.get(name) in types:
                return name
            if name in self._types:
                raise BagError(f'{self.path}: {name} is {self._types[name]}, not {" or ".join(types)}')
        candidates = self._find_candidates(types)
        if name is None and len(candidates) == 1:
            return candidates[0]
        if name is None and not candidates and (depths := list(filter(_is_depth, self._of_types(types)))):
            raise BagError(
                f'{self.path}: only depth images ({", ".join(depths)}), but airholes are looked for in the picture; '
                f'record it, too, or take one of these for it with {option}'
            )
        found = f'{" or ".join(types)}: {", ".join(candidates) or "none"}'
        if name is not None:
            raise BagError(f'{self.path}: no topic {name} (of type {found})')
        if candidates:
            raise BagError(f'{self.path}: several topics of type {found}; name one with {option}')
        others = ', '.join(f'{topic} ({type_name})' for topic, type_name in self.topics().items())
        raise BagError(f'{self.path}: no topic of type {" or ".join(types)} among {others or "none"}')

    def find_sensor_topics(
        self, image: str | None = None, camera_info: str | None = None, points: str | None = None
    ) -> SensorTopics:
        """The topics given by name, the others found by type and by the usual naming (camera_info beside the image).

        Raises BagError when one is missing or cannot be told apart; only a missing cloud is accepted.
        """
        if image is None:
            calibrated = [topic for topic in self._find_candidates(IMAGE_TYPES) if self._find_info_beside(topic)]
            image = calibrated[0] if len(calibrated) == 1 else None
        image = self.find_topic(IMAGE_TYPES, image, '--image-topic')
        camera_info = camera_info or self._find_info_beside(image)
        camera_info = self.find_topic(CAMERA_INFO_TYPES, camera_info, '--camera-info-topic')
        if points is None and not self._find_candidates(POINTS_TYPES):
            others = [f'{topic} ({kind})' for topic, kind in self.topics().items() if _OTHER_RANGES.search(kind)]
            others += filter(_is_depth, self._of_types(IMAGE_TYPES))
            remedy = f'; publish {POINTS_TYPES[0]} of {", ".join(others)} and record that' if others else ''
            self.warnings.append(
                f'{self.path}: no {POINTS_TYPES[0]} topic: airholes are found but not measured{remedy}'
            )
            return SensorTopics(image, camera_info, None)
        return SensorTopics(image, camera_info, self.find_topic(POINTS_TYPES, points, '--points-topic'))

    def sensor_messages(self, topics: SensorTopics) -> Iterator[BagMessage]:
        """Messages of `topics` and all transforms, as `messages` gives them."""
        transforms = [topic for topic, type_name in self.topics().items() if type_name == TRANSFORM_TYPE]
        return self.messages(
            [topic for topic in (topics.image, topics.camera_info, topics.points, *transforms) if topic]
        )

    @property
    def time_range_ns(self) -> tuple[int, int] | None:
        """Receive stamp of the first message, and one after that of the last; None when no index tells them."""
        ranges = [source.time_range_ns for source in self._sources]
        return ranges[0] if len(ranges) == 1 else None

    def messages(
        self, topics: Collection[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[BagMessage]:
        """Messages of `topics` in the order of their receive stamps (in a file without index: of writing).

        Those received from start_ns until before stop_ns, where given; both need a `time_range_ns`.
        Raises BagError for an unknown topic, and for a damaged file after everything else has been yielded.
        """
        for topic in topics:
            if topic not in self._types:
                raise BagError(f'{self.path}: no topic {topic} among {", ".join(self.topics())}')
        read = 0
        faults = [*self._damaged]
        for source in self._sources:
            try:
                for topic, stamp_ns, data in source.messages(topics, start_ns, stop_ns):
                    read += 1
                    try:
                        message = self._decode(topic, data)
                    except SerdeError:
                        self.undecodable[topic] += 1
                        continue
                    yield BagMessage(topic, message, stamp_ns)
            except BagError:
                raise
            except Exception as error:  # damaged bytes make every decoder fail in its own way
                faults.append(f'{source.path}: {_describe(error)}')
        if faults:
            raise BagError(
                f'{"; ".join(faults)}; everything before the damage was read ({read} messages), '
                'copy the bag again if it is complete elsewhere'
            )

    def close(self) -> None:
        """Close all files."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, path: Path) -> list[_Source]:
        if not path.exists():
            raise BagError(f'{path}: no such bag; check the path')
        if not path.is_dir():
            if path.suffix not in ('.mcap', '.db3'):
                raise BagError(f'{path}: not a rosbag2 folder, .mcap or .db3 file{_advise([path])}')
            return [self._open_file(path)]
        fault = 'no metadata.yaml (interrupted recording?)'
        if (path / 'metadata.yaml').exists():
            try:
                return [_Recording(path)]
            except Exception as error:  # damaged bytes make every decoder fail in its own way
                fault = _describe(error)
        files = sorted((file for file in path.iterdir() if file.suffix in ('.mcap', '.db3')), key=_natural_order)
        if not files:
            raise BagError(f'{path}: {fault}, and no .mcap or .db3 file{_advise(path.iterdir())}')
        self.warnings.append(f'{path}: {fault}; its files were read one by one')
        return self._open_files(files)

    def _find_logs(self, path: Path) -> None:
        """What SQLite had not yet moved into a file when its recorder was interrupted: it is not read from there."""
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            log = file.with_name(f'{file.name}-wal')
            if file.suffix == '.db3' and log.exists() and log.stat().st_size:
                text = f'{log}: its messages are not read; `sqlite3 "{file}" "PRAGMA wal_checkpoint"` adds them'
                self.warnings.append(text)
                self._damaged.append(text)

    def _open_files(self, files: Sequence[Path]) -> list[_Source]:
        """Those that can be read: a recording that was interrupted may end in a file of which nothing was written."""
        sources, faults = [], []
        for file in files:
            try:
                source = self._open_file(file)
            except BagError as error:
                faults.append(str(error))
                self._damaged += [str(error)] if file.stat().st_size else []
                continue
            sources.append(source)
        if not sources:
            raise BagError('; '.join(faults))
        self.warnings += faults
        return sources

    def _open_file(self, path: Path) -> _Source:
        try:
            return _Recording(path)
        except Exception as error:  # damaged bytes make every decoder fail in its own way
            if path.suffix == '.mcap':
                stream = _McapStream(path)
                if stream.topics:
                    self.warnings.append(f'{path}: {stream.fault or "has no index, read from its start to its end"}')
                    return stream
            raise BagError(f'{path}: cannot be read ({_describe(error)}); is it a rosbag2 file?') from None

    def _of_types(self, types: Sequence[str]) -> list[str]:
        return [topic for topic, type_name in self.topics().items() if type_name in types]

    def _find_candidates(self, types: Sequence[str]) -> list[str]:
        topics = self._of_types(types)
        if types == IMAGE_TYPES:
            topics = [topic for topic in topics if not _is_depth(topic)]
        topics = [topic for topic in topics if self._counts[topic]] or topics
        return [topic for topic in topics if topic.rpartition('/')[0] not in topics]

    def _find_info_beside(self, image: str) -> str | None:
        """camera_info in the namespace of /camera/image, also for /camera/image/compressed."""
        namespaces = (image.rpartition('/')[0], image.rpartition('/')[0].rpartition('/')[0])
        names = (f'{namespace}/camera_info' for namespace in namespaces)
        return next((name for name in names if self._types.get(name) in CAMERA_INFO_TYPES), None)

    def _decode(self, topic: str, data: bytes) -> Any:
        type_name = self._types[topic]
        if type_name not in self._typestores:
            self._typestores[type_name] = self._make_typestore(type_name)
        return self._typestores[type_name].deserialize_cdr(data, type_name)

    def _make_typestore(self, type_name: str) -> Typestore:
        """The definition stored in the bag comes first, because it is what the recorder saw."""
        definition = self._definitions.get(type_name, _NO_DEFINITION)
        if definition.format is MessageDefinitionFormat.NONE:
            store = make_typestore(self._sources[0].ros_distro)
        else:
            store = get_typestore(Stores.EMPTY)
            try:
                store.register(_parse_definition(type_name, definition))
            except TypesysError as error:
                raise BagError(f'{self.path}: definition of {type_name} cannot be parsed: {error}') from None
        if type_name not in store.types:
            raise BagError(f'{self.path}: no definition of {type_name}; record with a newer rosbag2, or to MCAP')
        return store


class _Topic(NamedTuple):
    name: str
    type_name: str
    definition: MessageDefinition
    message_count: int


class _Source(Protocol):
    path: Path
    topics: list[_Topic]
    ros_distro: str | None
    time_range_ns: tuple[int, int] | None

    def messages(
        self, topics: Collection[str], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[str, int, bytes]]: ...

    def close(self) -> None: ...


class _Recording:
    """What rosbags reads: a folder with metadata, or one complete file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = Reader(path)
        self._reader.open()
        self.ros_distro = self._reader.ros_distro
        self.time_range_ns: tuple[int, int] | None = (self._reader.start_time, self._reader.end_time)
        self.topics = [
            _Topic(connection.topic, connection.msgtype, connection.msgdef, connection.msgcount)
            for connection in self._reader.connections
        ]

    def messages(
        self, topics: Collection[str], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[str, int, bytes]]:
        connections = [connection for connection in self._reader.connections if connection.topic in topics]
        if not connections:  # rosbags takes an empty list for "all"
            return
        for connection, stamp_ns, data in self._reader.messages(connections, start_ns, stop_ns):
            yield connection.topic, stamp_ns, _decompress(data)

    def close(self) -> None:
        self._reader.close()


class _McapStream:
    """An MCAP file without index or end (interrupted recording, truncated copy): read record by record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ros_distro: str | None = None
        self.time_range_ns: tuple[int, int] | None = None
        self.fault = ''
        self._channels: dict[int, Channel] = {}
        schemas: dict[int, Schema] = {}
        counts: Counter[int] = Counter()
        try:
            for record in self._records():
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    self._channels[record.id] = record
                elif isinstance(record, Message):
                    counts[record.channel_id] += 1
        except Exception as error:  # raised again by messages(), after everything before the fault
            self.fault = _describe(error)
        self.topics = [
            _Topic(
                channel.topic,
                schemas[channel.schema_id].name,
                MessageDefinition(
                    _DEFINITION_FORMATS.get(schemas[channel.schema_id].encoding, MessageDefinitionFormat.NONE),
                    schemas[channel.schema_id].data.decode(),
                ),
                counts[identifier],
            )
            for identifier, channel in self._channels.items()
            if channel.schema_id in schemas
        ]

    def messages(
        self, topics: Collection[str], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[str, int, bytes]]:
        for record in self._records():
            if isinstance(record, Message):
                topic = self._channels[record.channel_id].topic
                late = stop_ns is not None and record.log_time >= stop_ns
                if topic in topics and not late and (start_ns is None or record.log_time >= start_ns):
                    yield topic, record.log_time, _decompress(record.data)

    def close(self) -> None:
        """Nothing is kept open."""

    def _records(self) -> Iterator[object]:
        size = self.path.stat().st_size
        with self.path.open('rb') as file:
            try:
                # The limit keeps a damaged length field from asking for gigabytes.
                yield from StreamReader(file, record_size_limit=size).records
            except EndOfFile:
                raise EOFError(f'the file ends inside a record, after {size} bytes') from None


def is_recorded(file: Path) -> bool:
    """Whether a file belongs to a recording, by its name; results may lie beside it."""
    return file.name == 'metadata.yaml' or '.mcap' in file.suffixes or any('.db3' in one for one in file.suffixes)


def _is_depth(image_topic: str) -> bool:
    """Whether an image topic is named as those of depth images are: /camera/depth/image_rect_raw, depth_registered."""
    return any(map(_DEPTH.fullmatch, image_topic.split('/')))


def _advise(files: Iterable[Path]) -> str:
    """What to do with files that are not read as they are; empty when there is nothing of the kind."""
    suffixes = {file.suffix for file in files}
    if '.zstd' in suffixes:
        return '; decompress with `unzstd` what ends in .zstd, then run `ros2 bag reindex` on the folder'
    if '.bag' in suffixes:
        return '; convert a ROS 1 bag with `rosbags-convert --src FILE.bag --dst FOLDER`'
    return ''


def _decompress(data: bytes) -> bytes:
    """Message-wise compression is told by the first bytes, which no CDR message has: also without metadata.yaml."""
    return zstandard.decompress(data) if data[:4] == _ZSTD_MAGIC else data


def _parse_definition(type_name: str, definition: MessageDefinition) -> Typesdict:
    if definition.format is MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, type_name)
    types: Typesdict = {}
    for part in definition.data.split('=' * 80 + '\n'):
        types.update(get_types_from_idl(part.partition('\n')[2] if part.startswith('IDL: ') else part))
    return types


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """bag_2 before bag_10."""
    return [(int(digits or -1), text) for digits, text in re.findall(r'(\d+)|(\D+)', path.name)]


def _describe(error: Exception) -> str:
    return str(error).rstrip('.') or type(error).__name__
