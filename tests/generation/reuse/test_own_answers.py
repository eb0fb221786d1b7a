"""Answers that come back in a conversation have the tokens that the model wrote, wherever the text is the same."""

from __future__ import annotations

import os
import random
import threading
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_tokenizer
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.generation.own_answers import COST, MOST_ALIKE, OwnAnswers, Place
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import Sequence
from headrace.kernels import Ops
from headrace.loaders.tokens.tokenizer import Tokenizer

DEMO = Path(__file__).parents[3] / "demo" / "model"
FOLDER = os.environ.get("HEADRACE_VOCAB")  # vocabularies of released models, as GGUF files
FILES = [DEMO, *(sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else [])]
LONGEST = 16  # bytes of a token that is looked for
ANSWERS = (
    "Let me look at that file.",
    '<think>\nThe user wants 12345 files.\n</think>\n\nI call it.\n<tool_call>\n{"name": "read", "arguments": '
    '{"path": "src/main.py", "lines": [10, 20]}}\n</tool_call>',
    "It says:\n\n```python\ndef run(self):\n    return  None\n```\n  done… déjà vu 東京 🙂",
)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(request.param)


@cache
def plain_tokens(tokenizer: Tokenizer) -> dict[bytes, list[int]]:
    """Ids by their bytes, special ones left out."""
    found, special = defaultdict[bytes, list[int]](list), set(tokenizer.added_tokens.values())
    for token in range(tokenizer.vocab_size):
        if token not in special:
            found[tokenizer.bytes_of(token)].append(token)
    return found


class Writer:
    """Writes texts in other tokens than a tokenizer gives: at random, as many as there are ways."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer, self.chance = tokenizer, random.Random(seed)
        self.tokens = plain_tokens(tokenizer)

    def __call__(self, ids: list[int]) -> list[int]:
        """Tokens of the bytes of these; special ones stay."""
        special, found, run = set(self.tokenizer.added_tokens.values()), list[int](), b""
        for token in [*ids, None]:
            if token is not None and token not in special:
                run += self.tokenizer.bytes_of(token)
                continue
            found += self._anew(run)
            found, run = found if token is None else [*found, token], b""
        return found

    def _anew(self, data: bytes) -> list[int]:
        found, at = list[int](), 0
        while at < len(data):
            pieces = {data[at : at + size] for size in range(1, LONGEST + 1)}
            piece = self.chance.choice(sorted(pieces & self.tokens.keys()))
            size, token = len(piece), self.chance.choice(self.tokens[piece])
            found, at = [*found, token], at + size
        return found


def turns(tokenizer: Tokenizer) -> tuple[Callable[[str], str], str, str]:
    """How a conversation is written in a vocabulary: of the user's words, and what stands around an answer."""
    added = tokenizer.added_tokens
    if "<|im_end|>" in added:
        return (lambda said: f"<|im_start|>user\n{said}<|im_end|>\n"), "<|im_start|>assistant\n", "<|im_end|>\n"
    return (lambda said: f"### User\n{said}\n\n"), "### Model\n", "\n\n"


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def data_of(own: OwnAnswers, ids: list[int]) -> bytes:
    return own._read(ids).data


def answer_ids(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """The tokens that a text's own way gives an answer behind its prompt."""
    before, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + answer)
    if whole[: len(before)] != before:
        pytest.skip("the prompt and the answer have a token in common")
    return whole[len(before) :]


def test_a_history_has_the_tokens_that_were_written(tokenizer: Tokenizer) -> None:
    """Over several turns; what it says is the same to the byte."""
    user, opens, closes = turns(tokenizer)
    own, write = OwnAnswers(tokenizer), Writer(tokenizer, 1)
    text, cached, spliced = "", list[int](), 0
    for place, answer in enumerate(ANSWERS):
        text += user(f"Question {place}, please?") + opens
        plain, made = encode(tokenizer, text), own.splice(encode(tokenizer, text))
        assert data_of(own, made.ids) == data_of(own, plain)
        assert tokenizer.decode(made.ids, False) == tokenizer.decode(plain, False)
        # Where no special token ends an answer, its last word may have grown together with what follows.
        sure = cached if "<|im_end|>" in closes else cached[:-10]
        assert made.ids[: len(sure)] == sure, "nothing that was computed is lost"
        assert made.answers == spliced
        assert made.place is not None
        usual = answer_ids(tokenizer, text, answer)
        written = write(usual)
        assert written != usual
        own.keep(made.place, written)
        cached, spliced = made.ids + written, spliced + 1
        text += answer + closes
    assert len(cached) > 100


def test_what_a_client_changed_is_taken_from_its_text(tokenizer: Tokenizer) -> None:
    """Wherever the change is: up to it the written tokens, from it on those of the text."""
    user, opens, closes = turns(tokenizer)
    prompt, answer, chance = user("Well?") + opens, ANSWERS[1], random.Random(2)
    for seed in range(40):
        own, write = OwnAnswers(tokenizer), Writer(tokenizer, seed)
        made = own.splice(encode(tokenizer, prompt))
        written = write(answer_ids(tokenizer, prompt, answer))
        assert made.place is not None
        own.keep(made.place, written)
        at = chance.randrange(len(answer))
        changed = chance.choice([answer[:at] + "Q" + answer[at + 1 :], answer[:at] + answer[at + 1 :], answer[:at]])
        plain = encode(tokenizer, prompt + changed + closes + user("And?"))
        again = own.splice(plain)
        assert data_of(own, again.ids) == data_of(own, plain)
        assert tokenizer.decode(again.ids, False) == tokenizer.decode(plain, False)
        after = encode(tokenizer, closes + user("And?"))[-4:]
        assert again.ids[-4:] == plain[-4:] == after


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer.load(DEMO)


def placed(own: OwnAnswers, text: str) -> Place:
    found = own.splice(encode(own.tokenizer, text)).place
    assert found is not None
    return found


def test_reasoning_that_a_template_drops_is_not_put_back(demo: Tokenizer) -> None:
    own, write = OwnAnswers(demo), Writer(demo, 3)
    own.keep(placed(own, "User: a\nModel: "), write(encode(demo, "<think>\nhm\n</think>\n\nGood day.")))
    plain = encode(demo, "User: a\nModel: Good day.\nUser: b\nModel: ")
    found = own.splice(plain)
    assert (found.ids, found.answers) == (plain, 0)


def test_a_special_token_is_none_that_was_spelled(demo: Tokenizer) -> None:
    """The model wrote its name in letters; in the text the tokenizer finds the token itself, and that stays."""
    own = OwnAnswers(demo)
    letters = [t for c in "x <|endoftext|> y" for t in encode(demo, c)]
    assert demo.added_tokens["<|endoftext|>"] not in letters
    own.keep(placed(own, "User: a\nModel:\n"), letters)
    plain = encode(demo, "User: a\nModel:\nx <|endoftext|> y\nUser: b\n")
    assert demo.added_tokens["<|endoftext|>"] in plain
    found = own.splice(plain)
    assert data_of(own, found.ids) == data_of(own, plain)
    assert demo.decode(found.ids, False) == demo.decode(plain, False)
    assert [i for i in found.ids if i == 0] == [i for i in plain if i == 0]


def test_where_the_tokenizer_does_not_agree_nothing_is_put_in(demo: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    own, prompt = OwnAnswers(demo), "User: a\nModel:\n"
    own.keep(placed(own, prompt), [t for c in "hello there" for t in encode(demo, c)])
    plain = encode(demo, prompt + "hello there\nUser: b\n")
    assert own.splice(plain).answers == 1
    monkeypatch.setattr(demo, "decode", lambda ids, skip_special_tokens=True: f"{len(ids)} tokens")
    found = own.splice(plain)
    assert (found.ids, found.answers, found.tokens) == (plain, 0, 0)


def test_of_several_answers_the_one_that_fits_best(demo: Tokenizer) -> None:
    own, prompt = OwnAnswers(demo), "User: a\nModel:\n"
    place, write = placed(own, prompt), Writer(demo, 5)
    texts = [f"The answer is number {i} of all, I think." for i in range(MOST_ALIKE + 2)]
    made = [write(encode(demo, text)) for text in texts]
    for one in made:
        own.keep(place, one)
    assert len(own) == MOST_ALIKE
    before = encode(demo, prompt)
    for text, one in list(zip(texts, made, strict=True))[2:]:
        found = own.splice(encode(demo, f"{prompt}{text}\nUser: b\n")).ids
        sure = len(before) + len(one) - 2  # the last word may have grown together with what follows
        assert found[:sure] == (before + one)[:sure]
    own.keep(place, made[-1])
    assert len(own) == MOST_ALIKE, "the same again is one"


def test_no_more_tokens_are_kept_than_allowed_and_those_in_use_stay(demo: Tokenizer) -> None:
    own = OwnAnswers(demo, most=10 * (COST + 20))
    write, answer = Writer(demo, 6), "hello there, hello"
    prompts = [f"User: {i}\nModel:\n" for i in range(200)]
    used = encode(demo, f"{prompts[0]}{answer}\nUser: b\n")
    for prompt in prompts:
        own.keep(placed(own, prompt), write(encode(demo, answer)))
        assert own.splice(used).answers == 1, "it was used a moment ago"
        assert own.kept <= own.most
    assert 5 <= len(own) <= 10 + 10
    assert own.splice(encode(demo, f"{prompts[1]}{answer}\nUser: b\n")).answers == 0
    own.keep(placed(own, "User: x\nModel:\n"), [5] * (own.most + 1))
    assert (own.kept, len(own)) == (0, 0), "one that is larger than all of it"
    assert not own._lengths


@pytest.mark.parametrize("tokens", [1, 8, 300])
def test_what_answers_count_is_the_memory_that_they_take(demo: Tokenizer, tokens: int) -> None:
    """A server that runs for long keeps the most that there may be: it has to be so many bytes."""
    luck, number = random.Random(tokens), 1000
    tracemalloc.start()
    try:
        own, rounds = OwnAnswers(demo, most=number * (COST + tokens + 2)), []
        for turn in range(5):
            most = 0
            for i in range(number):
                place = Place(key=(turn * number + i, luck.randbytes(16)), head=(luck.randrange(300, 4000), 300))
                own.keep(place, [luck.randrange(300, 4000) for _ in range(tokens)])
                most = max(most, tracemalloc.get_traced_memory()[0])
            rounds.append(most)
    finally:
        tracemalloc.stop()
    assert len(own) == number
    assert max(rounds) <= 4 * own.most, "it takes more than it counts"
    assert max(rounds) > 2.5 * own.most, "it counts far more than it takes"
    assert max(rounds[3:]) < 1.02 * max(rounds[1:3]), "more comes than goes"


def test_several_threads(demo: Tokenizer) -> None:
    own, errors = OwnAnswers(demo, most=50 * (COST + 20)), list[BaseException]()

    def work(number: int) -> None:
        write, answer = Writer(demo, number), "hello there, hello"
        try:
            for i in range(60):
                prompt = f"User {number % 2}: {i}\nModel:\n"
                own.keep(placed(own, prompt), write(encode(demo, answer)))
                plain = encode(demo, f"{prompt}{answer}\nUser: b\n")
                assert data_of(own, own.splice(plain).ids) == data_of(own, plain)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert own.kept == sum(len(a) + COST for many in own._answers.values() for a in many) <= own.most


# ---- a model that writes in letters


class Letters:
    """Says a text letter by letter, whatever the model would draw."""

    def __init__(self, tokenizer: Tokenizer, text: str, end: int) -> None:
        self.wanted = [*(t for c in text for t in encode(tokenizer, c)), end]

    def __call__(self, logits_SV: Tensor, sequences: list[Sequence], ops: Ops) -> list[int]:
        sample(logits_SV, sequences, ops)
        return [self.wanted[min(len(s.completion), len(self.wanted) - 1)] for s in sequences]


CHAT = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n\n{% endfor %}{{ 'assistant:\n' }}"
SAID = "Here is what I have found in the files of this project, which are many. " * 4


@pytest.mark.parametrize("remembers", [True, False])
def test_a_chat_goes_on_where_its_answer_ended(remembers: bool, demo: Tokenizer) -> None:
    with LLM("demo", sampler=Letters(demo, SAID.strip(), 0), no_measure=True) as llm:
        if not remembers:
            llm.admission.own_answers = None
        messages = [{"role": "user", "content": "What is there?"}]
        params = SamplingParams(max_new_tokens=400)
        first = llm.chat(messages, params, chat_template=CHAT)
        assert first.text == SAID.strip()
        messages += [first.message, {"role": "user", "content": "And then?"}]
        second = llm.chat(messages, params, chat_template=CHAT)
        computed = first.prompt_tokens + len(first.token_ids) - 1  # the last one is in no cache
        assert (second.reused_tokens == computed // 32 * 32) is remembers
        assert (second.reused_tokens > first.prompt_tokens) is remembers
        assert second.prompt_tokens == len(llm.chat_prompt(messages, chat_template=CHAT))


def test_an_answer_that_was_stopped_counts_too(demo: Tokenizer) -> None:
    with LLM("demo", sampler=Letters(demo, SAID, 0), no_measure=True) as llm:
        messages = [{"role": "user", "content": "What is there?"}]
        stream = llm.chat_stream(messages, SamplingParams(max_new_tokens=400), chat_template=CHAT)
        for _ in range(100):
            next(stream)
        stream.close()
        stream.rest()
        assert stream.result.finish_reason == "interrupted"
        made = len(stream.result.token_ids)
        messages += [stream.result.message, {"role": "user", "content": "Go on"}]
        second = llm.chat(messages, SamplingParams(max_new_tokens=1), chat_template=CHAT)
        assert second.reused_tokens >= (stream.result.prompt_tokens + made - 1) // 32 * 32 - 32
        assert second.reused_tokens > stream.result.prompt_tokens


def test_a_tiny_vocabulary(tmp_path: Path) -> None:
    """With one token a letter there is one way to write a text, and nothing to put back."""
    tiny_tokenizer.save(tmp_path)
    own = OwnAnswers(Tokenizer.load(tmp_path))
    ids = encode(own.tokenizer, "<user>a</s><model>")
    place = own.splice(ids).place
    assert place is not None
    own.keep(place, encode(own.tokenizer, "hello</s>"))
    found = own.splice(encode(own.tokenizer, "<user>a</s><model>hello</s><user>b</s><model>"))
    assert (found.answers, len(own)) == (0, 1)
