"""What llama.cpp knows of a vocabulary by its name or by the text of its tokens, as data.

A GGUF file names its pre-tokenizer (``tokenizer.ggml.pre``) and leaves the rest to its reader. The names, what they
mean and the ends of a text are those of llama.cpp (``src/llama-vocab.cpp``); the expressions are those of the models'
``tokenizer.json``, which llama.cpp approximates here and there. NFC is what the tokenizers of transformers apply, and
llama.cpp does not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """How the text of a byte-pair encoding is prepared.

    Attributes:
        splits: expressions; each one cuts the pieces that those before it have left.
        ignore_merges: a piece that is a token stays whole, whatever the merges say.
        adds_bos: a text begins with BOS unless the file says otherwise.
        nfc: the text is brought to Unicode's NFC first.
        byte_level: tokens are spelled in GPT-2's alphabet of bytes; otherwise as they are.
        marks_spaces: where tokens are not byte-level, U+2581 stands for a space.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    nfc: bool = False
    byte_level: bool = True
    marks_spaces: bool = False


def _any(*alternatives: str) -> str:
    return "|".join(alternatives)


def _letters(ranges: str) -> str:
    """The inside of a character class, from hexadecimal code points and ranges of them."""
    return "".join("-".join(rf"\x{{{end}}}" for end in part.split("-")) for part in ranges.split())


_APOSTROPHES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CODE_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT, _THREE_DIGITS, _LINES = r"\p{N}", r"\p{N}{1,3}", r"[^\n]+|[\n]+"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HAN_CAPITALS, _HAN_SMALL = (f"{letters[:-1]}&&[^\\p{{Han}}]]" for letters in (_CAPITALS, _SMALL))
_IDEOGRAPHS = rf"[{_letters('4E00-9FA5 3040-309F 30A0-30FF')}]+"
_OLD_IDEOGRAPHS = rf"[{_letters('4E00-9FA5 800-4E00 AC00-D7FF')}]+"


def _cased(capitals: str, small: str, end: str = "") -> tuple[str, str]:
    """Words that a change from small letters to capitals ends."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{capitals}*{small}+{end}", f"{before}{capitals}+{small}*{end}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _any(_APOSTROPHES, _WORD, _THREE_DIGITS, _MARKS, _BLANKS)
_QWEN2 = _any(_APOSTROPHES, _WORD, _DIGIT, _MARKS, _BLANKS)
_QWEN35 = _any(_APOSTROPHES, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", _DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _BLANKS)
_TEKKEN = _any(*_cased(_CAPITALS, _SMALL), _DIGIT, _CODE_MARKS, _BLANKS)
_GPT4O = _any(*_cased(_CAPITALS, _SMALL, _APOSTROPHES + "?"), _THREE_DIGITS, _CODE_MARKS, _BLANKS)
_YOUTU = _any(*_cased(_CAPITALS, _SMALL, _APOSTROPHES + "?"), _DIGIT, _CODE_MARKS, _BLANKS)
_KIMI_K2 = _any(r"\p{Han}+", *_cased(_HAN_CAPITALS, _HAN_SMALL, _APOSTROPHES + "?"), _THREE_DIGITS, _MARKS, _BLANKS)
_ASCII_MARK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (rf"{_ASCII_MARK}[A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+")
_DEEPSEEK_LETTERS = _letters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_MARKS = _letters("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_YOUTU_SCRIPTS = _any(
    *(
        f"[{_letters(ranges)}]+"
        for ranges in (
            "AC00-D7A3 3131-318E",
            "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F",
            "3105-312F",
        )
    ),
    _IDEOGRAPHS,
)
_AFMOE_SCRIPTS = _letters(
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F "
    "AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
_LONG_BLANKS = _any(*(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s")
_POINTS = rf" ?[^(\s|.,!?{_letters('2026 3002 FF0C 3001 964 6D4 60C')})]+"

# Names that mean the same share a row.
_ROWS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
    "modern-bert exaone4 jais trillion granite-docling": PreTokenizer((_GPT2,)),
    "mpt olmo": PreTokenizer((_GPT2,), nfc=True),
    "starcoder refact smollm codeshell exaone minerva-7b mellum2": PreTokenizer((_DIGIT, _GPT2)),
    "command-r": PreTokenizer((_DIGIT, _GPT2), nfc=True),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (_LLAMA3,), ignore_merges=True, adds_bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "jais-2": PreTokenizer((_any(_APOSTROPHES, _WORD, _THREE_DIGITS, _MARKS, r"\s*[\r\n]+", _LONG_BLANKS),)),
    "minicpm5": PreTokenizer(
        (_THREE_DIGITS, _any(_APOSTROPHES, _WORD, r"\p{N}+", _MARKS, _BLANKS)), ignore_merges=True
    ),
    "qwen2 deepseek-r1-qwen kormo f2llmv2": PreTokenizer((_QWEN2,), nfc=True),
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "stablelm2 megrez hunyuan solar-open grok-2": PreTokenizer((_QWEN2,)),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    "ufakzeka": PreTokenizer((_any(_WORD, _DIGIT, _MARKS, _BLANKS),)),
    "seed-coder": PreTokenizer((_any(_APOSTROPHES, _WORD, _DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+", _BLANKS),)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        (_any(r"'(?i:[sdmt]|ll|ve|re)", _WORD, _DIGIT, _MARKS, r"\s*[\r\n]|\s+(?!\S)|\s+"),)
    ),
    "exaone-moe": PreTokenizer(
        (
            _any(
                _APOSTROPHES,
                r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                _DIGIT,
                r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        )
    ),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_GPT4O,)),
    "granite-embed-multi-97m": PreTokenizer((_GPT4O,), ignore_merges=True),
    "tiny_aya cohere2moe": PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "kimi-k2": PreTokenizer((_KIMI_K2,)),
    "youtu": PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(
        (_THREE_DIGITS, _IDEOGRAPHS, _any(*_DEEPSEEK3, r" ?[\p{P}\p{S}]+[\r\n]*", _BLANKS))
    ),
    "spark2_5": PreTokenizer(
        (_THREE_DIGITS, _IDEOGRAPHS, _any(*_DEEPSEEK3, r" ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"), _DIGIT)
    ),
    "afmoe": PreTokenizer(
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",  # groups of three, counted from the end
            f"[{_AFMOE_SCRIPTS}]+",
            _any(*_DEEPSEEK3, r" ?[\p{P}\p{S}]+[\r\n]*", _BLANKS),
        )
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_MARKS}]+",
            r"\s+$",
            _OLD_IDEOGRAPHS,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _OLD_IDEOGRAPHS, _DIGIT)),
    "poro-chat bloom gpt3-finnish": PreTokenizer((_POINTS,)),
    "viking": PreTokenizer((_POINTS, _DIGIT)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        adds_bos=True,
    ),
    "gemma4 granite-embed-multi-311m": PreTokenizer((_LINES,), adds_bos=True, byte_level=False, marks_spaces=True),
    "sarvam-moe": PreTokenizer((_LINES,), byte_level=False, marks_spaces=True),
    "whitespace": PreTokenizer((r"\S+",), byte_level=False),
}
PRE_TOKENIZERS = {name: row for names, row in _ROWS.items() for name in names.split()}

# Tokens that end a text wherever they occur in a vocabulary, whatever the file says of its ends.
ENDS = frozenset(
    "</s> <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~[".split()
)
# Ends between the files of a repository: a key of the metadata, and the texts that count where it is absent.
FILE_ENDS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# A token that ends nothing where all of the others end a text: it closes a part of an answer there.
INNER_ENDS = (
    ("<|end|>", ("<|return|>", "<|call|>")),
    ("<|end|>", ("<|return|>", "<|calls|>")),
    ("<|end|>", ("<|call|>", "<|flush|>")),
    ("<|end|>", ("<|calls|>", "<|flush|>")),
    ("</s>", ("<|tool_response>",)),
)
