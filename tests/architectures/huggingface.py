"""Architectures as the transformers library writes them, with tiny configurations."""

from __future__ import annotations

from torch import Tensor, nn

from architectures.registry import architecture, integer, mask, real


class OneOutput(nn.Module):
    """A model of which one output is taken, by its name."""

    def __init__(self, model: nn.Module, output: str):
        super().__init__()
        self.model, self.output = model, output


class Text(OneOutput):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[self.output]


class Features(OneOutput):
    def forward(self, features: Tensor) -> Tensor:
        return self.model(features)[self.output]


TOKENS = (integer(50, "length"), mask())


@architecture(length=(7, 12))
def hf_bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=10,
    )  # fmt: skip
    return Text(BertForSequenceClassification(config), "logits"), TOKENS


@architecture(length=(7, 12))
def hf_distilbert():
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32)
    return Text(DistilBertModel(config), "last_hidden_state"), TOKENS


@architecture(length=(7, 12))
def hf_albert():
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    return Text(AlbertModel(config), "pooler_output"), TOKENS


@architecture(length=(7, 12))
def hf_mobilebert():
    from transformers import MobileBertConfig, MobileBertModel

    config = MobileBertConfig(
        vocab_size=50, hidden_size=16, embedding_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, intra_bottleneck_size=8, num_feedforward_networks=2, max_position_embeddings=32,
    )  # fmt: skip
    return Text(MobileBertModel(config), "last_hidden_state"), TOKENS


@architecture(length=(7, 12))
def hf_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, use_cache=False, bos_token_id=1, eos_token_id=1
    )
    return Text(GPT2LMHeadModel(config), "logits"), TOKENS


@architecture(length=(7, 12))
def hf_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, use_cache=False, pad_token_id=0,
    )  # fmt: skip
    return Text(LlamaForCausalLM(config), "logits"), TOKENS


@architecture(length=(7, 12))
def hf_t5_encoder():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        use_cache=False,
        attn_implementation="eager",
    )
    return Text(T5EncoderModel(config), "last_hidden_state"), TOKENS


@architecture()
def hf_whisper_encoder():
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        vocab_size=50, num_mel_bins=8, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        max_source_positions=12, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return Features(WhisperEncoder(config), "last_hidden_state"), (real(8, 24),)


@architecture()
def hf_wav2vec2():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(8, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return Features(Wav2Vec2Model(config), "last_hidden_state"), (real(200),)


@architecture()
def hf_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return Features(ViTForImageClassification(config), "logits"), (real(3, 32, 32),)


@architecture()
def hf_swin():
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=4,
        attn_implementation="eager",
    )
    return Features(SwinModel(config), "last_hidden_state"), (real(3, 32, 32),)


@architecture()
def hf_segformer():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=4,
    )  # fmt: skip
    return Features(SegformerForSemanticSegmentation(config), "logits"), (real(3, 32, 32),)
