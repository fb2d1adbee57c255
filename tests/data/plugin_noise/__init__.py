"""A plugin in the style of 2020: a criterion that compares the answers for embeddings with and without noise."""

import torch
import torch.nn.functional as F

from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion


@register_criterion("noisy_sentence_prediction")
class NoisySentencePrediction(FairseqCriterion):
    def __init__(self, task, eps, noise_weight, classification_head_name, regression_target):
        super().__init__(task)
        self.eps = eps
        self.noise_weight = noise_weight
        self.classification_head_name = classification_head_name
        self.regression_target = regression_target

    @staticmethod
    def add_args(parser):
        parser.add_argument("--eps", type=float, default=1e-5, help="size of the noise")
        parser.add_argument("--noise-weight", type=float, default=1.0, help="weight of the comparison")
        parser.add_argument("--classification-head-name", default="sentence_classification_head", help="head")

    def forward(self, model, sample, reduce=True):
        assert self.classification_head_name in model.classification_heads
        embeddings = model.encoder.sentence_encoder.embed_tokens(sample["net_input"]["src_tokens"])
        logits = self.logits(model, sample, embeddings)
        difference = logits.new_zeros(())
        if model.training:
            noised = self.logits(model, sample, embeddings.detach() + self.eps * torch.randn_like(embeddings))
            difference = F.kl_div(
                F.log_softmax(noised, dim=-1), F.log_softmax(logits, dim=-1), reduction="sum", log_target=True
            )
        targets = model.get_targets(sample, [logits]).view(-1)
        loss = F.nll_loss(F.log_softmax(logits, dim=-1, dtype=torch.float32), targets, reduction="sum")
        loss = loss + self.noise_weight * difference
        return (
            loss,
            targets.numel(),
            {
                "loss": utils.item(loss.data) if reduce else loss.data,
                "difference": utils.item(difference.data),
                "ncorrect": utils.item((logits.argmax(dim=1) == targets).sum()),
                "ntokens": sample["ntokens"],
                "nsentences": targets.numel(),
                "sample_size": targets.numel(),
            },
        )

    def logits(self, model, sample, embeddings):
        return model(
            **sample["net_input"],
            features_only=True,
            classification_head_name=self.classification_head_name,
            token_embeddings=embeddings,
        )[0]

    @staticmethod
    def aggregate_logging_outputs(logging_outputs):
        def total(name):
            return sum(output.get(name, 0) for output in logging_outputs)

        return {
            "loss": total("loss") / total("sample_size"),
            "difference": total("difference") / total("sample_size"),
            "accuracy": total("ncorrect") / total("nsentences"),
            "ntokens": total("ntokens"),
            "nsentences": total("nsentences"),
            "sample_size": total("sample_size"),
        }
