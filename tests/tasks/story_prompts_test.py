"""The shipped beginnings of stories: made by their command, all different, and two splits that share none."""

from meal_jax.tasks import stories, story_prompts


def test_the_shipped_file_is_what_its_command_writes(tmp_path):
    story_prompts.main([f"--out={tmp_path / 'prompts.jsonl'}"])
    assert (tmp_path / "prompts.jsonl").read_bytes() == stories.PROMPTS.read_bytes()


def test_no_beginning_is_in_both_splits():
    rows = story_prompts.prompts()
    texts = [row["prompt"] for row in rows]
    assert len({text.casefold() for text in texts}) == len(texts) == story_prompts.TRAIN + story_prompts.TEST
    assert [row["split"] for row in rows].count("test") == story_prompts.TEST
