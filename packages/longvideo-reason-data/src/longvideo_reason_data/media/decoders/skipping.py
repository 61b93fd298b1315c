"""Decoding without the pictures that nothing refers to, for those that are decoded only on the way to another one.

In most films half of the pictures are such: between two others, and no other picture is predicted from them. The
decoders of H.264 and HEVC skip them where they are told so, packet by packet; for AV1 they are cut out of the packets
(`longvideo_reason_data.media.decoders.av1_headers`). The other pictures are the same, bit for bit. In VP9 every picture
is used for the motion of the next one, so nothing can be skipped; nor where a frame isn't identified by its time alone.

Damage in a skipped picture isn't noticed; it changes no other picture.
"""

from collections.abc import Callable

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from longvideo_reason_data.media.decoders.av1_headers import Av1Pictures
from longvideo_reason_data.media.frame_index import VideoIndex

DecodePacket = Callable[["av.Packet[VideoStream]", bool], list[VideoFrame]]
"""Decodes a packet, which may be skipped if the second argument is false and nothing refers to its picture."""

_HEVC_CONFIGURATION = 1  # its version
_PLACE_OF_NUM_LAYERS = 21


def decode_all(packet: "av.Packet[VideoStream]", is_wanted: bool) -> list[VideoFrame]:
    """Decode a packet and skip nothing."""
    return packet.decode()


def find_skipping(stream: VideoStream, index: VideoIndex) -> DecodePacket | None:
    """Choose how unneeded pictures of a stream are skipped; None if that could change others."""
    is_timed = index.seekable and index.packets is None and bool(np.all(np.diff(index.times) > 0))
    if not is_timed:
        return None
    context = stream.codec_context
    configuration, codec = context.extradata, context.codec.canonical_name
    if codec == "h264" or (codec == "hevc" and _has_one_layer(configuration)):
        return lambda packet, is_wanted: _decode_referenced(packet, is_wanted, context)
    if codec == "av1" and (pictures := Av1Pictures.of(configuration)):
        return lambda packet, is_wanted: _decode_without_last(packet, is_wanted, pictures)
    return None


def _has_one_layer(configuration: bytes | None) -> bool:
    """Return whether HEVC has no temporal layers: pictures of a higher one may refer to unreferenced ones of a lower.

    See ISO/IEC 14496-15, section 8.3.3.1.
    """
    if not configuration or len(configuration) <= _PLACE_OF_NUM_LAYERS or configuration[0] != _HEVC_CONFIGURATION:
        return False
    return configuration[_PLACE_OF_NUM_LAYERS] >> 3 & 7 == 1


def _decode_referenced(
    packet: "av.Packet[VideoStream]", is_wanted: bool, context: VideoCodecContext
) -> list[VideoFrame]:
    context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
    return packet.decode()


def _decode_without_last(packet: "av.Packet[VideoStream]", is_wanted: bool, pictures: Av1Pictures) -> list[VideoFrame]:
    """Decode a packet of AV1 up to the picture that it shows, which is its last."""
    num_needed = pictures.count_needed_bytes(memoryview(packet))
    if is_wanted or num_needed == packet.size:
        return packet.decode()
    if not num_needed:
        return []
    rest = av.Packet(bytes(memoryview(packet)[:num_needed]))
    rest.stream, rest.time_base, rest.pts, rest.dts = packet.stream, packet.time_base, packet.pts, packet.dts
    return packet.stream.decode(rest)
