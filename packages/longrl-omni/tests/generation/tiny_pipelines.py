"""Pipelines of a few thousand weights, in their published layouts: Stable Diffusion 3, FLUX.1 and Wan."""

import json
import string
from pathlib import Path
from typing import Any

import torch


def build_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def clip_settings(tokenizer: Any, *, num_layers: int) -> Any:
    """The settings of a text encoder of CLIP's kind."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def build_t5(tokenizer: Any) -> Any:
    """A text encoder of T5's kind."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2))


def build_vae(**settings: Any) -> Any:
    """A VAE of pictures with four numbers per latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )


def write_tiny_pipeline(folder: Path) -> None:
    """Write one of random weights, with all parts of a published one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    tokenizer = build_tokenizer(folder.parent / "letters")
    torch.manual_seed(0)
    text = clip_settings(tokenizer, num_layers=2)
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
        text_encoder=CLIPTextModelWithProjection(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder_3=build_t5(tokenizer),
        tokenizer_3=tokenizer,
    )
    pipeline.save_pretrained(folder)


def write_tiny_flux(folder: Path) -> None:
    """Write a FLUX.1 of random weights, with all parts of the published `dev`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    tokenizer = build_tokenizer(folder.parent / "letters")
    torch.manual_seed(0)
    text = clip_settings(tokenizer, num_layers=1)
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=build_vae(
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        text_encoder_2=build_t5(tokenizer),
        tokenizer_2=tokenizer,
    )
    pipeline.save_pretrained(folder)


def write_tiny_wan(
    folder: Path, *, shift: float = 3.0, boundary: float | None = None, has_token_times: bool = False
) -> None:
    """Write one of random weights, with all parts of a published one.

    Args:
        folder: Where.
        shift: Of the noise levels; published are 3 for 480 lines and 5 for 720.
        boundary: Of the noise levels of two experts, as in Wan 2.2; None for one transformer.
        has_token_times: Whether every token has a time, as in Wan 2.2's small model.
    """
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in string.ascii_lowercase)], extra_ids=0)
    torch.manual_seed(0)

    def make_transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
        )

    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=len(tokenizer), d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2)
        ),
        vae=AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift),
        transformer=make_transformer(),
        transformer_2=None if boundary is None else make_transformer(),
        boundary_ratio=boundary,
        expand_timesteps=has_token_times,
    )
    pipeline.save_pretrained(folder)
