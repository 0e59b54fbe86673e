"""Posts that a moderator should see: for each category whether it is about the author, somebody else, or not.

Records of JiraiBench's form: id, text, and a value for each category (0 not concerning, 1 the author, 2
somebody else), in JSON lines or columns. The posts are the user's own; what ships are neutral stand-ins. For
research and moderation; no substitute for a person's judgement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.errors import DataError
from calque.evaluate import moderation
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, needed, records
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_APART = frozenset({"id", "lang", "language", "text", "split", "where", "group", "author"})
# What is asked, by the language of the prompt: reviewer, what the values mean, and the form of an answer.
_ASK = {
    "eng": ("You review posts. Give each category a value: 0 absent or unclear, 1 about the author,"
            " 2 about somebody else. Answer in JSON."),
    "zho": "你是内容审核员。为每个类别给出一个值：0 没有或不清楚，1 关于作者本人，2 关于他人。用 JSON 回答。",
    "jpn": ("あなたは投稿の審査員です。各カテゴリーに値を付けてください。"
            "0 なし・不明、1 投稿者本人、2 他の人。JSON で答えてください。"),
}  # fmt: skip


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    of = Language.parse(language)
    names = [f"{name}/{split}.*" for name in (of.code, of.iso, of.short)] + [f"{split}.*"]
    for row in records(locate(path, *names)):
        spoken = row.get("lang", row.get("language"))
        if row.get("split", split) == split and (not spoken or Language.parse(str(spoken)).iso == of.iso):
            yield row


def _item(row: Row, language: str, split: str) -> Item:
    where = str(row.get("where", "record"))
    gold = {name: str(value).strip() for name, value in row.items() if name not in _APART}
    if not gold:
        raise DataError(f"{where}: no category; expected a column with 0, 1 or 2 for each beside the text")
    for name, value in gold.items():
        if value not in moderation.CLASSES:
            raise DataError(f"{where}: '{name}' is '{value}'; a category is 0, 1 or 2")
    fields = {"text": needed({**row, "where": where}, "text", str), "categories": tuple(gold)}
    name = str(row.get("id") or where.rpartition(":")[2])
    return Item(name, language, fields, gold, str(row.get("author", row.get("group", ""))))


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """Only the words around the post are in the language of the prompt."""
    form = "{" + ", ".join(f'"{name}": 0|1|2' for name in item.fields["categories"]) + "}"
    told = [f"{_asked(shot, pack)} {_shown(shot)}" for shot in shots]
    ask = _ASK.get(pack.code[:3], _ASK["eng"])
    return Prompt("\n\n".join([f"{ask} {form}", *told, _asked(item, pack)]), stop=("\n",), max_tokens=48)


def _asked(item: Item, pack: LanguagePack) -> str:
    return f"{pack['context']} {item.fields['text']}\n{pack['answer']}"


def _shown(item: Item) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in item.gold.items()) + "}"


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    """Every class of every category is named in each item, so that an absent one counts as 0."""
    told = moderation.read(answer.text, item.fields["categories"], answer.value)
    metrics: dict[str, float] = {}
    right = 0
    for category, gold in item.gold.items():
        made = told.values[category]
        right += made == gold
        for kind in moderation.CLASSES:
            sums = {"tp": made == gold == kind, "fp": made == kind != gold, "fn": gold == kind != made}
            metrics |= {f"{category}.{name}.{kind}": float(hit) for name, hit in sums.items()}
            metrics |= {f"{name}.{category}/{kind}": float(hit) for name, hit in sums.items()}
        metrics |= {f"binary.{category}.{k}": float(v) for k, v in _binary(gold, made).items()}
    return {
        **metrics,
        "correct": float(right == len(item.gold)),
        "refused": float(told.refused),
        "unparsed": float(not told.refused and None in told.values.values()),
    }


def _binary(gold: str, made: str | None) -> dict[str, bool]:
    """Concerning at all against not; what was not answered is missed."""
    said = made not in (None, "0")
    return {"tp": gold != "0" and said, "fp": gold == "0" and said, "fn": gold != "0" and not said}


def _sample(*rows: tuple[str, int, int]) -> tuple[Row, ...]:
    return tuple(
        {"id": str(n), "text": text, "train": train, "food": food}
        for n, (text, train, food) in enumerate(rows, 1)
    )


BENCHMARK = Benchmark(
    name="moderation",
    paper="Xiao et al. 2025, arXiv:2503.21679 (JiraiBench)",
    licence="by data set; the sample: Apache-2.0",
    revision=1,
    languages=("zho_Hans", "jpn_Jpan"),
    form="text",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("macro_f1_all", "correct", "refused", "unparsed"),
    shots=0,
    sample={
        "eng_Latn": _sample(
            ("I take the train every morning.", 1, 0), ("Anna cooked rice.", 0, 2), ("It is Monday.", 0, 0)
        ),
        "zho_Hans": _sample(("我每天早上坐火车。", 1, 0), ("安娜煮了米饭。", 0, 2), ("今天是星期一。", 0, 0)),
        "jpn_Jpan": _sample(
            ("私は毎朝電車に乗る。", 1, 0), ("アンナはご飯を炊いた。", 0, 2), ("今日は月曜日だ。", 0, 0)
        ),
    },
)
