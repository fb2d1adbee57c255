"""A plugin as users of the original wrote them: a model with its own flags, an architecture, a task and a criterion."""

import torch
from torch.nn import functional as F

from fairseq import metrics, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import Dictionary, data_utils
from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaModel, base_architecture
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask


@register_model("scaled_roberta")
class ScaledRoberta(RobertaModel):
    @staticmethod
    def add_args(parser):
        RobertaModel.add_args(parser)
        parser.add_argument("--feature-scale", type=float, metavar="D", help="multiplies the features")

    @classmethod
    def build_model(cls, args, task):
        model = super().build_model(args, task)
        model.feature_scale = args.feature_scale
        return model


@register_model_architecture("scaled_roberta", "scaled_roberta_tiny")
def scaled_roberta_tiny(args):
    args.encoder_layers = getattr(args, "encoder_layers", 1)
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 16)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 32)
    args.encoder_attention_heads = getattr(args, "encoder_attention_heads", 2)
    args.feature_scale = getattr(args, "feature_scale", 0.5)
    base_architecture(args)


@register_task("counting_masked_lm", dataclass=MaskedLMConfig)
class CountingMaskedLMTask(MaskedLMTask):
    seen = 0

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        type(self).seen += sample["nsentences"]
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)


@register_criterion("summed_masked_lm")
class SummedMaskedLm(FairseqCriterion):
    def __init__(self, task, label_smoothing=0.0):
        super().__init__(task)
        self.label_smoothing = label_smoothing

    def forward(self, model, sample, reduce=True):
        masked = sample["target"].ne(self.padding_idx)
        logits = model(**sample["net_input"], masked_tokens=masked)[0]
        loss = F.cross_entropy(
            logits.float(), sample["target"][masked], reduction="sum", label_smoothing=self.label_smoothing
        )
        size = int(masked.sum())
        return (
            loss,
            size,
            {
                "loss": loss.detach(),
                "ntokens": sample["ntokens"],
                "nsentences": sample["nsentences"],
                "sample_size": size,
            },
        )

    @staticmethod
    def reduce_metrics(logging_outputs):
        loss = sum(log["loss"] for log in logging_outputs)
        size = sum(log["sample_size"] for log in logging_outputs)
        metrics.log_scalar("loss", utils.item(loss) / size, size, round=3)
        metrics.log_scalar("plugin_scale", 2.0, 1)

    @staticmethod
    def logging_outputs_can_be_summed():
        return True


__all__ = ["Dictionary", "data_utils", "torch"]
