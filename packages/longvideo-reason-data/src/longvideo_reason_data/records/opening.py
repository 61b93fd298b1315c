"""From a record's medium to the frames of its file, whatever its kind."""

from pathlib import Path, PurePath

from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.media.image_file import IMAGE_SUFFIXES, FramesFile, ImageFile
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.medium import MediumKind, RecordMedium, resolve_medium


def open_medium(dataset_folder: Path, medium: RecordMedium, *, decoder: DecoderName = DecoderName.PYAV) -> FramesFile:
    """Open the file of a medium.

    Args:
        dataset_folder: The folder with the records file.
        medium: A medium of a record read from it.
        decoder: The decoding library for videos.

    Raises:
        UsageError: When the decoder isn't installed.
        DataError: When the file is missing, outside the folder, damaged, or of another kind.
    """
    return open_file(resolve_medium(dataset_folder, medium), medium.kind, decoder=decoder)


def open_file(path: Path, kind: MediumKind, *, decoder: DecoderName = DecoderName.PYAV) -> FramesFile:
    """Open a file of a known kind; see `open_medium`."""
    return ImageFile.open(path) if kind is MediumKind.IMAGE else VideoFile.open(path, decoder=decoder)


def kind_of(path: PurePath) -> MediumKind:
    """Determine the kind of a file from its name, where nothing else gives it."""
    return MediumKind.IMAGE if path.suffix.lower() in IMAGE_SUFFIXES else MediumKind.VIDEO
