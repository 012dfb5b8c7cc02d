"""A managed node (ROS 2 life cycle) whose transitions are plain methods that raise what stops them."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from cmml_ros.errors import CmmlError


class ManagedNode(LifecycleNode):
    """Configures and activates itself in `start`, unless the parameter `autostart` is false.

    A subclass overrides `configure`, `activate`, `deactivate` and `clean_up`. The first two raise when they cannot: the
    transition is then a FAILURE, the reason is logged, and the node is as it was before. The last two undo the first
    two, whatever of them was done.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        about = ParameterDescriptor(description='configure and activate without a lifecycle manager', read_only=True)
        self._autostart: bool = self.declare_parameter('autostart', True, about).value
        self.failure = ''

    def configure(self) -> None:
        """Acquire what takes long."""

    def activate(self) -> None:
        """Begin to work."""

    def deactivate(self) -> None:
        """Stop working, keep what `configure` acquired."""

    def clean_up(self) -> None:
        """Release what `configure` acquired."""

    def start(self, on_configured: Callable[[], None] = lambda: None) -> bool:
        """Whether the node runs, or waits for a lifecycle manager; `failure` says why not.

        on_configured: called once what takes long is acquired, before the node begins to work.
        """
        if not self._autostart:
            self.get_logger().info('waits for a lifecycle manager: autostart is false')
            return True
        if self.trigger_configure() is not TransitionCallbackReturn.SUCCESS:
            return False
        on_configured()
        return self.trigger_activate() is TransitionCallbackReturn.SUCCESS

    def on_configure(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Unconfigured to inactive."""
        return self._try('cannot configure', self.configure, undo=self.clean_up)

    def on_activate(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Inactive to active."""
        return self._try('cannot activate', self.activate, undo=self.deactivate)

    def on_deactivate(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Active to inactive."""
        return self._try('cannot deactivate', self.deactivate)

    def on_cleanup(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Inactive to unconfigured."""
        return self._try('cannot clean up', self.clean_up)

    def on_shutdown(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Whatever it was, to finalized."""
        return self._try('cannot shut down', self._finish)

    def destroy_node(self) -> None:
        """Finish what is under way, then go."""
        self._finish()
        super().destroy_node()
        # It holds the node, and a node that is held keeps its participant: others would count on it for 20 s more, and
        # its shared memory would outlive the process.
        vars(self).pop('_state_machine', None)

    def _on_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        """rclpy raises when the state has no such transition, and whoever asked for it would wait for ever."""
        wanted = request.transition.label or request.transition.id
        try:
            return self._change_state(request, response)
        except RuntimeError:
            possible = ', '.join(f'{each[1]} ({each[0]})' for each in self._state_machine.available_transitions)
            state = self._state_machine.current_state[1]
            self.get_logger().error(f'no transition {wanted} from the state {state}; there are {possible}')
            response.success = False
            return response

    def _finish(self) -> None:
        self.deactivate()
        self.clean_up()

    def _try(
        self, what: str, action: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        try:
            action()
        except Exception as error:
            self.failure = str(error) if isinstance(error, CmmlError) else traceback.format_exc()
            self.get_logger().error(f'{what}: {self.failure}')
            if undo is not None:
                undo()
            return TransitionCallbackReturn.FAILURE
        self.failure = ''
        return TransitionCallbackReturn.SUCCESS
