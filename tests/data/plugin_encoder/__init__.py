"""A plugin in the style of 2021: a RoBERTa whose encoder is its own, with the old interface: ids in, a dictionary out."""

import torch
import torch.nn as nn

from fairseq.models import FairseqEncoder, register_model, register_model_architecture
from fairseq.models.roberta import RobertaEncoder, RobertaLMHead, RobertaModel
from fairseq.modules import LayerNorm, PositionalEmbedding
from fairseq.modules.transformer_sentence_encoder import init_bert_params


class AveragingLayer(nn.Module):
    """Every token sees the mean of all tokens; x (T, B, C)."""

    def __init__(self, dim, dropout):
        super().__init__()
        self.fc = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = LayerNorm(dim)

    def forward(self, x, padding_mask):
        kept = (~padding_mask).t().unsqueeze(-1).type_as(x)
        mean = (x * kept).sum(dim=0, keepdim=True) / kept.sum(dim=0, keepdim=True).clamp(min=1)
        mixed = torch.tanh(self.fc(torch.cat([x, mean.expand_as(x)], dim=-1)))
        return self.norm(x + self.dropout(mixed))


class AveragingEncoder(FairseqEncoder):
    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.embed_tokens = embed_tokens
        self.embed_positions = PositionalEmbedding(
            args.max_positions, args.encoder_embed_dim, self.padding_idx, learned=args.encoder_learned_pos
        )
        self.layers = nn.ModuleList(
            [AveragingLayer(args.encoder_embed_dim, args.dropout) for _ in range(args.encoder_layers)]
        )
        self.num_updates = 0

    def set_num_updates(self, num_updates):
        self.num_updates = num_updates

    def forward(self, src_tokens, src_lengths=None, return_all_hiddens=False, token_embeddings=None):
        padding_mask = src_tokens.eq(self.padding_idx)
        if token_embeddings is None:
            token_embeddings = self.embed_tokens(src_tokens)
        x = token_embeddings + self.embed_positions(src_tokens)
        x = (x * (1 - padding_mask.unsqueeze(-1).type_as(x))).transpose(0, 1)
        encoder_states = [x] if return_all_hiddens else []
        for layer in self.layers:
            x = layer(x, padding_mask)
            if return_all_hiddens:
                encoder_states.append(x)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [token_embeddings],
            "encoder_states": encoder_states,
            "src_tokens": [],
            "src_lengths": [],
        }


class AveragingRobertaEncoder(RobertaEncoder):
    def build_encoder(self, args, dictionary, embed_tokens):
        encoder = AveragingEncoder(args, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(self, embed_dim, output_dim, activation_fn, weight):
        return RobertaLMHead(embed_dim, output_dim, activation_fn, weight)

    def extract_features(self, src_tokens, return_all_hiddens=False, **kwargs):
        features, extra = super().extract_features(src_tokens, return_all_hiddens, **kwargs)
        return features * self.args.feature_scale, extra


@register_model("averaging_roberta")
class AveragingRoberta(RobertaModel):
    @staticmethod
    def add_args(parser):
        RobertaModel.add_args(parser)
        parser.add_argument("--feature-scale", type=float, metavar="D", help="multiplies the features")

    @classmethod
    def build_model(cls, args, task):
        averaging_base(args)
        if not hasattr(args, "max_positions"):
            args.max_positions = args.tokens_per_sample
        return cls(args, AveragingRobertaEncoder(args, task.source_dictionary))


@register_model_architecture("averaging_roberta", "averaging_base")
def averaging_base(args):
    args.encoder_layers = getattr(args, "encoder_layers", 2)
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 16)
    args.encoder_learned_pos = getattr(args, "encoder_learned_pos", True)
    args.dropout = getattr(args, "dropout", 0.1)
    args.feature_scale = getattr(args, "feature_scale", 1.0)
