"""The shipped beginnings of stories: made by their command, all different, and two splits that share none."""

import re

from meal_jax.tasks import stories, story_prompts


def test_the_shipped_file_is_what_its_command_writes(tmp_path):
    story_prompts.main([f"--out={tmp_path / 'prompts.jsonl'}"])
    assert (tmp_path / "prompts.jsonl").read_bytes() == stories.PROMPTS.read_bytes()


def test_types_to_evaluate_on_are_never_trained_on(tmp_path):
    story_prompts.main(["--types", f"--out={tmp_path / 'prompts.jsonl'}"])
    assert (tmp_path / "prompts.jsonl").read_bytes() == stories.TYPES.read_bytes()
    rows = story_prompts.prompts_by_types()
    train, test = ([row["prompt"] for row in rows if row["split"] == split] for split in ("train", "test"))
    assert (len(set(train)), len(set(test))) == (story_prompts.TRAIN, story_prompts.TEST)
    for place in (r"there was a \w+ (\w+)", r"named (\w+)", r"One day, (.*)"):  # hero, name, event
        kinds = [
            {re.sub(r"\b(he|she|his|her)\b", "_", re.search(place, t)[1]) for t in texts} for texts in (train, test)
        ]
        assert not kinds[0] & kinds[1]


def test_no_beginning_is_in_both_splits():
    rows = story_prompts.prompts()
    texts = [row["prompt"] for row in rows]
    assert len({text.casefold() for text in texts}) == len(texts) == story_prompts.TRAIN + story_prompts.TEST
    assert [row["split"] for row in rows].count("test") == story_prompts.TEST
