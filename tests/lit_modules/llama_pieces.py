"""A stand-in for Llama-2's tokenizer, which is not ours to ship.

It holds the pieces that the goldens' texts are made of, at the ids that the goldens give them, in a vocabulary of the
same size, so that text is really turned into those ids.
"""

from typing import Any

PIECES = """
▁a 263  ▁the 278  ▁in 297  ▁to 304  ch 305  ▁and 322  ▁g 330  ▁is 338  ie 347  ▁for 363  ver 369  ▁it 372
▁an 385  ▁that 393  ▁as 408  ▁this 445  ▁The 450  ▁was 471  ▁Th 498  ▁can 508  ▁from 515  ▁are 526  ▁li 619
▁ab 633  ▁any 738  ▁when 746  ▁then 769  ▁. 869  ▁You 887  ical 936  lement 944  roid 1007  ▁tra 1020
▁about 1048  land 1049  che 1173  ▁each 1269  ule 1297  ▁these 1438  ▁supp 1462  ▁right 1492  ▁There 1670
▁open 1722  ▁eff 1801  ities 1907  ▁No 1939  ura 2002  ▁take 2125  ▁size 2159  ▁information 2472  ▁refer 2737
omen 2770  ▁context 3030  ▁please 3113  ▁Tra 3201  ▁report 3461  ▁seen 3595  ural 3631  ▁First 3824
▁provide 3867  usion 3958  ▁area 4038  ▁mass 4158  ▁normal 4226  ▁provided 4944  ▁region 5120  ▁heart 5192
▁global 5534  ▁natural 5613  ▁ple 5644  ▁mm 5654  ▁generate 5706  ensive 6270  ▁corresponding 6590  atom 8678
normal 8945  ▁Given 11221  ▁bron 12246  ▁structures 12286  ▁identify 12439  ▁scan 12812  ▁lung 13030
▁detailed 13173  ▁thy 13874  ▁regional 14014  ▁generating 14655  ▁compreh 15171  ▁medical 16083  ▁Heart 17778
▁nod 18778  ▁essential 18853  ▁CT 26637  ▁ 29871  a 29874  d 29881  . 29889  y 29891  , 29892  1 29896  0 29900
: 29901  2 29906  9 29929  3 29941  5 29945  4 29946  8 29947  6 29953  7 29955
"""


def llama_stand_in(legacy: bool = True) -> Any:
    """Llama-2's fast tokenizer as far as the goldens go.

    Args:
        legacy: Every stretch of text between special tokens starts with `▁`, as the authors' tokenizer has it.
            `False` is what newer versions of transformers make of the same files.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<unused{i}>", -1e4) for i in range(3, 32000))]
    for entry in PIECES.replace("\n", "  ").split("  "):
        if entry:
            piece, index = entry.split(" ")
            vocabulary[int(index)] = (piece, -1.0)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
