"""hawkBit as the scheduler: it says when this device takes which patch; the TUF repository stays the authority on what a patch is.

    scheduler = "hawkbit"
    [hawkbit]
    url = "https://hawkbit.example/TENANT"; token = "token.txt"

An action names a patch by digest (DDI).  It is installed only when the roles of the repository name the same digest for this device in
an open release, and it is fetched from the repository, never from hawkBit.  A signed order to return is obeyed whatever hawkBit says.
How an action stands is read from the store at every poll, so feedback is right after any restart; a repeated one is harmless.

    action's patch                        feedback
    runs here                             closed, success
    failed here or was refused            closed, failure, with the reason
    named by no or by one role only       closed, failure (and IntegrityError, exit 5)
    does not fit what runs here           closed, failure (and MismatchError, exit 4)
    on trial                              proceeding
    released, not open for this device    scheduled
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeedit.device.agent import Order, Situation
from edgeedit.errors import EdgeEditError, IntegrityError, MismatchError
from edgeedit.files import replace_file

if TYPE_CHECKING:
    from edgeedit.ota.client.ddi import Assignment, DdiClient, Polled

MEMORY = "hawkbit.json"
_LOG = logging.getLogger(__name__)


class Content(Protocol):
    """The authority on content: `edgeedit.device.updates.TufSource`."""

    def poll(self, situation: Situation, floors: Any, now: float, wanted: str | None = None) -> Order | None:
        """The signed order, of the wanted patch only ("" for none)."""

    def fetch(self, order: Order, folder: Path) -> Path:
        """The patch of the order."""

    def length(self) -> int:
        """Bytes of the patch that was offered last."""


class HawkbitSource:
    """A `Source` that asks hawkBit when, and the repository what.  `memory` is a folder that may vanish."""

    def __init__(self, content: Content, client: Callable[[str], DdiClient], memory: Path, interval: float) -> None:
        self._content, self._make, self._memory = content, client, memory
        self._default, self._sleep = interval, interval
        self._told = ("", "")
        self._client: DdiClient | None = None

    def interval(self) -> float:
        """Seconds until the next poll: the server's word, else the device's own."""
        return self._sleep

    def poll(self, situation: Situation, floors: Any, now: float) -> Order | None:
        """The signed order that hawkBit wants now, or a signed order to return; raises what `TufSource.poll` and the client raise."""
        client = self._client = self._client or self._make(situation.device)
        try:
            order = self._scheduled(client, situation, floors, now)
        except EdgeEditError as error:
            # Whatever ails the scheduler: a withdrawal that is signed is obeyed.
            back = self._withdrawal(situation, floors, now)
            if back is None:
                raise
            _LOG.warning("the scheduler failed: %s", error.message)
            order = back
        return order

    def fetch(self, order: Order, folder: Path) -> Path:
        """From the repository."""
        return self._content.fetch(order, folder)

    def _scheduled(self, client: DdiClient, situation: Situation, floors: Any, now: float) -> Order | None:
        polled = client.poll()
        self._sleep = polled.sleep or self._default
        if polled.wants_attributes:
            client.put_attributes({"profile": situation.profile, "fingerprint": situation.running, "engine": "edgeedit"})
        if polled.confirm and self._consent(client, polled.confirm, situation, floors, now):
            polled = client.poll()
        if polled.cancel:
            self._cancel(client, polled.cancel, situation)
        return self._deploy(client, polled, situation, floors, now)

    def _deploy(self, client: DdiClient, polled: Polled, situation: Situation, floors: Any, now: float) -> Order | None:
        if not polled.deploy:
            return self._content.poll(situation, floors, now, wanted="")
        try:
            assigned = client.assignment(polled.deploy)
        except IntegrityError as error:
            action = getattr(error, "action", "")
            if action:
                client.feedback(action, "closed", "failure", [error.message])
            raise
        if assigned is None or self._settled(client, assigned, situation):
            return self._content.poll(situation, floors, now, wanted="")
        try:
            order = self._signed(assigned, situation, floors, now)
        except (MismatchError, IntegrityError) as error:
            if _final(error):
                client.feedback(assigned.action, "closed", "failure", [error.message])
            raise
        if order is None:
            self._tell(client, assigned.action, "scheduled", "no open release takes this device now")
        elif order.action == "install":
            self._remember(assigned)
            self._tell(client, assigned.action, "proceeding", f"release {order.release}: fetching {order.patch}")
        return order

    def _settled(self, client: DdiClient, assigned: Assignment, situation: Situation) -> bool:
        """Say how an action stands that needs no order; whether it is such a one."""
        if assigned.digest in situation.installed:
            client.feedback(assigned.action, "closed", "success", ["the patch runs, its probes passed"])
        elif situation.trying == assigned.digest:
            self._tell(client, assigned.action, "proceeding", "the patch is on trial")
        elif assigned.digest in situation.failures:
            client.feedback(assigned.action, "closed", "failure", [situation.failures[assigned.digest] or "the patch failed here"])
        elif situation.trying or not assigned.now:
            self._tell(client, assigned.action, "scheduled", "another patch is on trial" if situation.trying else "not in this window")
        else:
            return False
        return True

    def _signed(self, assigned: Assignment, situation: Situation, floors: Any, now: float) -> Order | None:
        """The repository's order for the assigned patch; its length is what hawkBit says, where it says one."""
        order = self._content.poll(situation, floors, now, wanted=assigned.digest)
        if order is not None and order.action == "install" and assigned.length not in (0, self._content.length()):
            from edgeedit.ota.client.session import DisagreementError

            raise DisagreementError(
                f"scheduled patch has another length: expected {self._content.length()} bytes as signed, got {assigned.length}",
                hint="upload the file that was signed",
            )
        return order

    def _consent(self, client: DdiClient, action: str, situation: Situation, floors: Any, now: float) -> bool:
        """Confirm an action that the roles allow here, deny one that they never will; whether it was confirmed."""
        try:
            assigned = client.confirmation(action)
            if assigned is None:
                return False
            if assigned.digest in situation.failures and assigned.digest not in situation.installed:
                client.answer_confirmation(action, confirmed=False, details=[situation.failures[assigned.digest] or "it failed here"])
                return False
            if situation.trying:
                return False
            order = self._signed(assigned, situation, floors, now) if assigned.digest not in situation.installed else None
        except (MismatchError, IntegrityError) as error:
            if _final(error):
                client.answer_confirmation(action, confirmed=False, details=[error.message])
                return False
            raise
        if assigned.digest in situation.installed or (order is not None and order.action == "install"):
            client.answer_confirmation(action, confirmed=True, details=["both roles name the patch for this device"])
            return True
        return False

    def _cancel(self, client: DdiClient, action: str, situation: Situation) -> None:
        """Accept while nothing of it was staged; afterwards the store's own verdict is what counts."""
        stopped = client.stopped(action)
        if not stopped:
            return
        digest = self._recall(stopped)
        late = digest != "" and digest in (situation.trying, *situation.installed)
        # An action from before the memory was lost may be what is on trial: better to go on than to say that it was stopped.
        late = late or (digest == "" and situation.trying != "")
        text = "the patch is staged or runs already; withdraw the release instead" if late else "nothing was staged"
        client.answer_cancel(action, accepted=not late, details=[text])

    def _withdrawal(self, situation: Situation, floors: Any, now: float) -> Order | None:
        try:
            order = self._content.poll(situation, floors, now, wanted="")
        except EdgeEditError as error:
            _LOG.warning("the repository failed too: %s", error.message)
            return None
        return order if order is not None and order.action == "return" else None

    def _tell(self, client: DdiClient, action: str, execution: str, text: str) -> None:
        """Feedback of an action that stays open: once for each text, not at every poll."""
        if self._told != (action, text):
            client.feedback(action, "proceeding" if execution == "proceeding" else "scheduled", "none", [text])
            self._told = (action, text)

    def _remember(self, assigned: Assignment) -> None:
        value = {"action": assigned.action, "patch": assigned.digest}
        if self._read() != value:
            self._memory.mkdir(exist_ok=True)
            replace_file(self._memory / MEMORY, json.dumps(value).encode())

    def _recall(self, action: str) -> str:
        value = self._read()
        return str(value.get("patch", "")) if value.get("action") == action else ""

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads((self._memory / MEMORY).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def _final(error: EdgeEditError) -> bool:
    """Whether asking again could not help: the roles do not name the patch, or it does not fit here."""
    from edgeedit.ota.client.ddi import DdiError
    from edgeedit.ota.client.session import DisagreementError, UnfitError

    return isinstance(error, (DdiError, DisagreementError, UnfitError))
