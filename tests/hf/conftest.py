"""The tiny random decoders of the tests of models, for weights in and out."""

from tests.models.conftest import case, random_params, torch_decoder  # noqa: F401
