"""A visitor of a served page without a browser: Streamlit's own messages over its web socket.

What is timed is the server's answer, from the wish to the last element of the run, with the
transfer of all that the page sends. Nothing is drawn, so ten visitors cost little.
"""

import time
from types import TracebackType
from typing import Any, Self

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Subprotocol

WAIT = 120.0  # seconds for one answer
EARLY = ForwardMsg.ScriptFinishedStatus.FINISHED_EARLY_FOR_RERUN


class PageFailedError(RuntimeError):
    """The page showed an exception, or there is none of this name."""


class Visitor:
    """One session on one page of a dashboard.

    Args:
        url: of the dashboard.
        page: its path, as in the address.
    """

    def __init__(self, url: str, page: str) -> None:
        self._page = page
        self._sliders: set[str] = set()
        self._moved: dict[str, float] = {}
        self._socket = connect(
            url.replace("http", "ws", 1) + "/_stcore/stream",
            subprotocols=[Subprotocol("streamlit")],
            max_size=None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._socket.close()

    def draw(self) -> float:
        """Run the page as it is now.

        Returns:
            Seconds until its last element was here.

        Raises:
            PageFailedError: if it showed an exception.
            TimeoutError: if it did not end.
        """
        wish = BackMsg()
        wish.rerun_script.page_name = self._page
        for widget, value in self._moved.items():
            state = wish.rerun_script.widget_states.widgets.add()
            state.id = widget
            state.double_array_value.data.append(value)
        started = time.perf_counter()
        self._socket.send(wish.SerializeToString())
        while True:
            told = ForwardMsg()
            told.ParseFromString(self._received())
            kind = told.WhichOneof("type")
            if kind == "page_not_found":
                raise PageFailedError(f"no page {self._page!r}")
            if kind == "delta":
                self._see(told.delta.new_element)
            elif kind == "script_finished" and told.script_finished != EARLY:
                return time.perf_counter() - started

    def move(self, slider: str, value: float) -> float:
        """Move a slider, by its key; seconds as :meth:`draw` tells.

        Raises:
            KeyError: if the page has no such slider.
        """
        widget = next((name for name in self._sliders if name.endswith(f"-{slider}")), None)
        if widget is None:
            raise KeyError(slider)
        self._moved[widget] = value
        return self.draw()

    def _received(self) -> bytes:
        message = self._socket.recv(timeout=WAIT)
        assert isinstance(message, bytes)
        return message

    def _see(self, element: Any) -> None:
        kind = element.WhichOneof("type")
        if kind == "exception":
            raise PageFailedError(element.exception.message)
        if kind == "slider":
            self._sliders.add(element.slider.id)
