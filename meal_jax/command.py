"""What the command lines share."""

from absl import app


def parse(argv):
    """absl's parser, with a message instead of a trace for a field that is not there."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:
        raise SystemExit(
            f"error: a --config.… names a field that the configuration does not have: {error}\n"
            "All fields and what they mean are in meal_jax/config.py."
        ) from None
