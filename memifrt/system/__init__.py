"""What Linux gives: owned fds, kicks, fds out of messages, functions as they were before monkey patching."""
