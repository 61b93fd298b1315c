"""The shapes of published models, by name, for a plan or a rehearsal of a model that isn't at hand."""

from dataclasses import replace

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.families.qwen.frame_sizes import QwenFrames
from mrsp_engine.families.vila.config import MediaSyntax
from mrsp_engine.families.vila.frame_sizes import VilaFrames
from mrsp_engine.planner.shapes import LinearShape, ModelShape, VisionShape
from mrsp_engine.planner.videos import QwenVideos, VilaVideos, count_as_qwen

__all__ = ["MODELS"]


def _qwen2_5_vision(intermediate_size: int, *, positions_per_second: float = 2.0) -> VisionShape:
    return VisionShape(
        width=1280,
        intermediate_size=intermediate_size,
        depth=32,
        patch_size=14,
        num_linears=3,
        window_patches=64,
        full_share=4 / 32,
        videos=_qwen_videos(14, 3136, 12845056, positions_per_second=positions_per_second),
    )


def _qwen2_vision() -> VisionShape:
    return VisionShape(width=1280, intermediate_size=5120, depth=32, patch_size=14)


def _qwen3_vision(width: int, intermediate_size: int, depth: int) -> VisionShape:
    return VisionShape(
        width=width,
        intermediate_size=intermediate_size,
        depth=depth,
        patch_size=16,
        levels=4,
        videos=_qwen_videos(16, 4096, 25165824, is_third=True),
    )


def _qwen_videos(
    patch_size: int,
    min_pixels: int,
    max_pixels: int,
    *,
    is_third: bool = False,
    positions_per_second: float | None = None,
) -> QwenVideos:
    frames = QwenFrames(
        patch_size=patch_size,
        merge_size=2,
        frames_per_group=2,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        is_whole_video=is_third,
    )
    return QwenVideos(
        frames=frames,
        writes_times=is_third,
        positions_per_second=positions_per_second,
        count_tokens=count_as_qwen,
    )


def _siglip(merge_size: int, *, pool_frames: int = 1) -> VisionShape:
    syntax = MediaSyntax(start="", end="\n", pool=(pool_frames, 1, 1))
    frames = VilaFrames(rows_per_side=-(-(448 // 14) // merge_size), syntax=syntax)
    return VisionShape(
        width=1152,
        intermediate_size=4304,
        depth=27,
        patch_size=14,
        merge_size=merge_size,
        frames_per_group=1,
        fixed_size=448,
        extra_tokens=1,
        videos=VilaVideos(frames=frames, edge=448, count_tokens=count_as_qwen),
    )


def _shape(
    name: str,
    sizes: tuple[int, int, int, int, int, int],
    vocab_size: int,
    max_positions: int,
    vision: VisionShape | None = None,
    *,
    is_tied: bool = False,
) -> ModelShape:
    hidden_size, num_layers, query, key, channels, intermediate_size = sizes
    return ModelShape(
        name=name,
        hidden_size=hidden_size,
        num_layers=num_layers,
        heads=AttentionHeads(query=query, key=key, channels=channels),
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        is_tied=is_tied,
        max_positions=max_positions,
        vision=vision,
    )


def _hybrid(
    name: str,
    sizes: tuple[int, int, int, int, int, int],
    vision: VisionShape,
    *,
    value_heads: int,
    is_tied: bool = False,
) -> ModelShape:
    """Qwen3.5: three in four layers keep a state, and the tower gives one level."""
    linear = LinearShape(
        num_layers=sizes[1] * 3 // 4, key_heads=16, value_heads=value_heads, key_channels=128, value_channels=128
    )
    shape = _shape(name, sizes, 248320, 262144, replace(vision, levels=1), is_tied=is_tied)
    return replace(shape, is_gated=True, linear=linear)


_QWEN2_7B = (3584, 28, 28, 4, 128, 18944)
MODELS = {
    shape.name: shape
    for shape in (
        _shape("Qwen2-VL-2B", (1536, 28, 12, 2, 128, 8960), 151936, 32768, _qwen2_vision(), is_tied=True),
        _shape("Qwen2-VL-7B", _QWEN2_7B, 152064, 32768, _qwen2_vision()),
        _shape("Qwen2-VL-72B", (8192, 80, 64, 8, 128, 29568), 152064, 32768, _qwen2_vision()),
        _shape("Qwen2.5-VL-3B", (2048, 36, 16, 2, 128, 11008), 151936, 128000, _qwen2_5_vision(3420), is_tied=True),
        _shape("Qwen2.5-VL-7B", _QWEN2_7B, 152064, 128000, _qwen2_5_vision(3420)),
        _shape("Qwen2.5-VL-32B", (5120, 64, 40, 8, 128, 27648), 152064, 128000, _qwen2_5_vision(3456)),
        _shape("Qwen2.5-VL-72B", (8192, 80, 64, 8, 128, 29568), 152064, 128000, _qwen2_5_vision(3456)),
        _shape(
            "Qwen3-VL-2B", (2048, 28, 16, 8, 128, 6144), 151936, 262144, _qwen3_vision(1024, 4096, 24), is_tied=True
        ),
        _shape(
            "Qwen3-VL-4B", (2560, 36, 32, 8, 128, 9728), 151936, 262144, _qwen3_vision(1024, 4096, 24), is_tied=True
        ),
        _shape("Qwen3-VL-8B", (4096, 36, 32, 8, 128, 12288), 151936, 262144, _qwen3_vision(1152, 4304, 27)),
        _shape("Qwen3-VL-32B", (5120, 64, 64, 8, 128, 25600), 151936, 262144, _qwen3_vision(1152, 4304, 27)),
        _shape(
            "Qwen2.5-Omni-3B",
            (2048, 36, 16, 2, 128, 11008),
            151936,
            32768,
            _qwen2_5_vision(3420, positions_per_second=25.0),
        ),
        _shape("Qwen2.5-Omni-7B", _QWEN2_7B, 152064, 32768, _qwen2_5_vision(3420, positions_per_second=25.0)),
        _hybrid("Qwen3.5-2B", (2048, 24, 8, 2, 256, 6144), _qwen3_vision(1024, 4096, 24), value_heads=16, is_tied=True),
        _hybrid(
            "Qwen3.5-4B", (2560, 32, 16, 4, 256, 9216), _qwen3_vision(1024, 4096, 24), value_heads=32, is_tied=True
        ),
        _hybrid("Qwen3.5-27B", (5120, 64, 24, 4, 256, 17408), _qwen3_vision(1152, 4304, 27), value_heads=48),
        _shape("LongVILA-R1-7B", _QWEN2_7B, 151651, 262144, _siglip(2)),
        _shape("NVILA-Lite-8B", _QWEN2_7B, 151651, 32768, _siglip(3)),
        _shape("NVILA-8B-Video", _QWEN2_7B, 151651, 32768, _siglip(2, pool_frames=8)),
        _shape("Qwen3-1.7B", (2048, 28, 16, 8, 128, 6144), 151936, 40960, is_tied=True),
        _shape("Qwen3-4B", (2560, 36, 32, 8, 128, 9728), 151936, 40960, is_tied=True),
        _shape("Qwen3-8B", (4096, 36, 32, 8, 128, 12288), 151936, 40960),
        _shape("Qwen2.5-0.5B", (896, 24, 14, 2, 64, 4864), 151936, 32768, is_tied=True),
        _shape("Qwen2.5-1.5B", (1536, 28, 12, 2, 128, 8960), 151936, 32768, is_tied=True),
        _shape("Qwen2.5-3B", (2048, 36, 16, 2, 128, 11008), 151936, 32768, is_tied=True),
        _shape("Qwen2.5-7B", _QWEN2_7B, 152064, 32768),
        _shape("Qwen2.5-14B", (5120, 48, 40, 8, 128, 13824), 152064, 32768),
        _shape("Qwen2.5-32B", (5120, 64, 40, 8, 128, 27648), 152064, 32768),
        _shape("Qwen2.5-72B", (8192, 80, 64, 8, 128, 29568), 152064, 32768),
    )
}
"""As in the published config.json of each; `-Instruct` and an owner before the name are accepted too. Qwen2.5-Omni is
its thinker, without the audio tower. NVILA-8B-Video is as its authors' script for long videos trains it, with all the
positions of its language model.
"""
