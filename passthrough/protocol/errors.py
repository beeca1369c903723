"""Whose fault it is: the peer's, in one request or in the stream."""


class RequestError(Exception):
    """One request is malformed (too short, a name without its NUL, sizes that disagree): that request gets EINVAL."""


class StreamError(Exception):
    """The stream of requests cannot be trusted any more (a truncated header, a length that lies): the queue halts."""
