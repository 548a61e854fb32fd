"""A capture backend by its name."""

from toolkit.capture.base import CaptureBackend
from toolkit.errors import SafeNeuronError
from toolkit.models.load import LoadedModel

BACKENDS = ("torch", "transformerlens", "nnsight")


def make_backend(name: str, loaded: LoadedModel) -> CaptureBackend:
    """Make the backend called ``name`` for a model.

    Each library is imported only when it is asked for: they take seconds to start.

    Args:
        name: one of :data:`BACKENDS`.
        loaded: the model. ``torch`` runs this very instance; the others load the folder
            once more, because they change the instance that they run.

    Raises:
        SafeNeuronError: no backend of that name, its library can't be imported, or the
            library does not support the architecture.
    """
    if name not in BACKENDS:
        raise SafeNeuronError(f"no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    try:
        if name == "transformerlens":
            from toolkit.capture.transformerlens import TransformerLensBackend

            return TransformerLensBackend(loaded)
        if name == "nnsight":
            from toolkit.capture.nnsight import NnsightBackend

            return NnsightBackend(loaded)
    except ImportError as error:
        raise SafeNeuronError(
            f"backend {name} can't be imported ({error}); use --backend torch"
        ) from error
    from toolkit.capture.hooks import HooksBackend

    return HooksBackend(loaded)
