"""Errors for wrong use. Each message names the value, the cause and the cure; the command line prints it in one line and exits 2."""


class UsageError(ValueError):
    """The caller asked for something that cannot be done; nothing was changed."""


class UnsupportedInput(UsageError):
    """A kernel refuses an input it declares unsupported: counted as `unsupported`, never as a pass and never as a bug."""


class ShortOfMemory(UnsupportedInput):
    """The device has too little memory for an input, for what it or others hold: counted as `short`; it says nothing about the kernel."""


class NotAllowed(UsageError):
    """A file speaks of a module the user did not name: it is not imported."""
