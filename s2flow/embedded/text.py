"""Word-level tokenizer of the embedded backbone, saved in the standard fast-tokenizer format."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from s2flow.embedded.world import LATER_WORDS, LONGEST, vocabulary

TEXT_LENGTH = LONGEST + 1  # prompts are zero-padded to this, which is part of the model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world's grammar, <unk> for any other, </s> at the end."""
    words = ["<pad>", "</s>", "<unk>", *sorted(vocabulary()), *LATER_WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )
