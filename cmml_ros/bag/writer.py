"""Write rosbag2 recordings (MCAP, zstd) without ROS."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.errors import BagError

_INFINITE = QosTime(9223372036, 854775807)  # what rosbag2 writes for RMW_DURATION_INFINITE
_RAW = (bytes, bytearray, memoryview)


class BagWriter:
    """A new rosbag2 folder at `path`, to be used as a context manager.

    Leaving the context, with or without an exception, closes the bag with its index and metadata, so that
    everything written can be read. Not thread-safe: one thread writes.
    Raises BagError when `path` exists or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._typestore = make_typestore()
        self.types = self._typestore.types
        self._connections: dict[str, Connection] = {}
        self._closed = False
        try:
            self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
        except WriterError:
            raise BagError(f'{path} exists already; name a new folder or remove it') from None
        except OSError as error:
            raise BagError(f'{path}: cannot be written ({error.strerror}); check the path') from None

    def add_topic(self, name: str, type_name: str, *, latched: bool = False) -> None:
        """Declare a topic, for example ('/camera/image', 'sensor_msgs/msg/Image').

        latched: offered as transient local, so that `ros2 bag play` keeps the last messages for late subscribers.
        Raises BagError for an unknown type, or when the topic is there already.
        """
        if name in self._connections:
            raise BagError(f'{self.path}: topic {name} was added twice')
        if type_name not in self._typestore.types:
            raise BagError(f'{self.path}: unknown message type {type_name} for {name}; write it as package/msg/Type')
        qos = Qos(
            history=QosHistory.KEEP_LAST,
            depth=100 if latched else 10,
            reliability=QosReliability.RELIABLE,
            durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            deadline=_INFINITE,
            lifespan=_INFINITE,
            liveliness=QosLiveliness.AUTOMATIC,
            liveliness_lease_duration=_INFINITE,
            avoid_ros_namespace_conventions=False,
        )
        self._connections[name] = self._writer.add_connection(
            name, type_name, typestore=self._typestore, offered_qos_profiles=[qos]
        )

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Append one message: an object of `types`, or the CDR bytes of a message as they came over DDS.

        stamp_ns: when it was received. Raises BagError for an unknown topic, a closed bag, or a full disk.
        """
        if self._closed:
            raise BagError(f'{self.path} is closed')
        if topic not in self._connections:
            raise BagError(f'{self.path}: topic {topic} was not added')
        connection = self._connections[topic]
        if isinstance(message, _RAW):
            data: bytes | memoryview = memoryview(message)
        else:
            data = self._typestore.serialize_cdr(message, connection.msgtype)
        try:
            self._writer.write(connection, stamp_ns, data)
        except OSError as error:
            raise BagError(f'{self.path}: {error.strerror}; what was written before is kept') from None

    def close(self) -> None:
        """Write index and metadata. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
        except OSError as error:
            self._writer.abort()
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
